#!/usr/bin/env bash
# Everything that wants a GPU, in one call that ends by itself: tests, real-size latency, training of the embedded models.
#
#     scripts/gpu_checks.sh CARRIED STATE OUT [SECONDS]
#
# CARRIED holds what the machine may lack: wheels (whl/), photographs (photos/) and torchvision's SqueezeNet features
# (squeezenet1_1_features.pth). STATE keeps what later calls go on from. OUT gets the results, early and often: a tar
# of every packed model, the autoencoder's too, the latency table, notes of the trainings, logs. SECONDS defaults to 530.
# INIT may name packed folders of these architectures, from which an empty STATE goes on. Environment besides: PYTHON,
# PIP; KEYS, TESTS, BENCH (none leaves both benchmarks out), SMALL (--small), PAIRS and PHOTOS for a rehearsal at toy
# size.
set -u
carried=$1 state=$2 out=$3 total=${4:-530}
python=${PYTHON:-python3} work=$state/work packed=$state/packed logs=$state/logs
mkdir -p "$work" "$packed" "$logs" "$out"
export PYTHONPATH=$state/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
export TORCHINDUCTOR_CACHE_DIR=$state/inductor
say() { echo "[$SECONDS s] $*"; }

collect() { # into OUT, each file complete at every moment
  local folder name
  for folder in "$packed"/*/ "$work/vae/"; do
    name=$(basename "$folder")
    [ -d "$folder" ] && tar -czf "$state/collected" -C "$(dirname "$folder")" "$name" && mv "$state/collected" "$out/$name.tar.gz"
  done
  cp "$state"/bench_*.* "$out/" 2>/dev/null
  "$python" -c 'import json, pathlib, sys; print(json.dumps({p.stem: json.loads(p.read_text()) for p in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}))' "$work" >"$logs/training.json"
  tar -czf "$out/logs.tar.gz" -C "$state" logs
}

background=()
finish() {
  for pid in "${background[@]}"; do kill -CONT -- "-$pid" 2>/dev/null; kill -- "-$pid" 2>/dev/null; done
  collect
  say "results: $(cd "$out" && du -ab . | tr '\n' ' ')"
}
trap finish EXIT
start() { setsid nice -n "$1" "${@:3}" >"$logs/$2.log" 2>&1 & background+=($!); } # niceness, log, command

# 1. What the machine lacks.
if [ ! -e "$state/installed" ]; then
  ${PIP:-$python -m pip} install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$state/site" "$carried"/whl/*.whl \
    >"$logs/pip.log" 2>&1 && touch "$state/installed" || say "not all wheels were installed: $(tail -1 "$logs/pip.log")"
fi
say "installed"
if [ -n "${INIT:-}" ] && [ ! -d "$work/vae" ]; then
  "$python" -m scripts.train_tiny unpack --init "$INIT" --work "$work" >"$logs/unpack.log" 2>&1 || say "unpacking failed: $(tail -1 "$logs/unpack.log")"
fi

# 2. Tests, while the trainings' networks are compiled for later.
train="$python -m scripts.train_tiny"
data="--data $carried/photos --work $work --photos ${PHOTOS:-0}"
if [ ! -e "$state/tests" ]; then
  start 10 warm bash -c "for stage in ip2p base branch high_frequency inpaint; do $train \$stage --warm $data --pool 1024 ${KEYS:-}; done"
  warm=$!
  timeout -k 5 50 "$python" -m pytest -q -m gpu -o addopts= -p no:cacheprovider ${TESTS:-tests/export/test_composition.py tests/cli/test_finetune.py} \
    >"$logs/tests.log" 2>&1 || say "tests ended with $?"
  tail -3 "$logs/tests.log"
  touch "$state/tests"
  kill -STOP -- "-$warm" 2>/dev/null # the benchmark wants the machine for itself
fi
say "tested"

# 3. Latency at real size, of cut networks and of three plans.
if [ ! -e "$state/bench" ] && [ "${BENCH:-}" != none ]; then
  timeout -k 5 120 "$python" -m scripts.bench_latency ${BENCH:---minutes 1.4 --dtype float16 --batch 1 --mode eager} --out "$state/bench_latency" \
    >"$logs/bench.log" 2>&1 || say "the benchmark ended with $?"
  touch "$state/bench"
  tail -12 "$logs/bench.log"
fi
if [ ! -e "$state/plans" ] && [ "${BENCH:-}" != none ]; then
  timeout -k 5 150 bash -c "$python -m scripts.full_size ip2p $state/ip2p ${SMALL:-} && $python -m scripts.bench_plans ip2p --model $state/ip2p --out $state/bench_plans.json --key data.path=$carried/photos" \
    >"$logs/plans.log" 2>&1 || say "the benchmark of plans ended with $?"
  touch "$state/plans"
  rm -rf "$state/ip2p"
fi
[ -n "${warm:-}" ] && kill -CONT -- "-$warm" 2>/dev/null
collect
say "measured"

# 4. Training: what was not trained yet, and longer what was; autoencoder and base stay once others stand on them.
for shard in 0 1 2 3 4 5; do
  start 15 "pairs_$shard" $train pairs $data --shard $shard --shards 6 --seconds "$total" ${PAIRS:---rounds 12}
done
shares=""
add() { # stage, its share in a first call and in a later one
  local share=$3
  [ -e "$work/$1.pt" ] || share=$2
  [ "$share" = 0 ] || shares+="${shares:+,}$1=$share"
}
add vae 80 0
add ip2p 170 60
add base 35 0
add branch 55 50
add diffusion 60 30
add wrapping 25 20
add high_frequency 25 0
add inpaint 35 15
(while sleep 20; do collect; done) >/dev/null 2>&1 &
collector=$!
left=$((total - SECONDS - 15))
say "training $shares in $left s"
timeout -k 5 $((left + 12)) $train all --data "$carried/photos" --photos "${PHOTOS:-0}" --work "$work" --out "$packed" --seconds "$left" \
  --shares "$shares" --lpips "$carried/squeezenet1_1_features.pth" --keys=" ${KEYS:-}" 2>&1 | grep --line-buffered -v float32 | tee -a "$logs/training.log"
kill $collector 2>/dev/null
say "done"
