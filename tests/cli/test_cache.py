"""`idc cache`: what is kept, emptying it, and the key that limits it."""

from pathlib import Path


def put(name, size):
    path = Path("outputs/cache") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def test_it_shows_and_empties(idc):
    assert "outputs/cache: 0.00 GB" in idc("cache").out
    put("references/a.safetensors", 30_000_000)
    put("references/b.safetensors", 30_000_000)
    put("inception/c.safetensors", 1)
    shown = idc("cache").out.splitlines()
    assert shown[0] == "outputs/cache: 0.06 GB"
    assert [line.split() for line in shown[1:]] == [
        ["inception", "1", "entries", "0.00", "GB"],
        ["references", "2", "entries", "0.06", "GB"],
    ]
    result = idc("cache", "clear=true")
    assert (result.code, result.out) == (0, "removed 0.06 GB from outputs/cache\n")
    assert not [path for path in Path("outputs").rglob("*") if path.is_file()]
    assert not Path("outputs/ip2p").exists()  # no run folder


def test_mistakes_are_one_line_and_help_names_the_key(idc):
    for words in (["clear=yes"], ["empty"], ["clear=true", "now"]):
        result = idc("cache", *words)
        assert result.code == 2
        assert result.err == f"idc: error: idc cache takes clear=true or nothing, got {' '.join(words)}\n"
    assert "cache_gb" in idc("cache", "--help").out
    assert "cache_gb must be at least 0, got -1" in idc("profile", "cache_gb=-1").err
    assert "  cache " in idc("--help").out
