"""BibTeX of the methods that a compression used."""

from __future__ import annotations

PAPER = """@inproceedings{kim2024compression,
  title     = {Diffusion Model Compression for Image-to-Image Translation},
  author    = {Kim, Geonung and Kim, Beomsu and Park, Eunhyeok and Cho, Sunghyun},
  booktitle = {Asian Conference on Computer Vision (ACCV)},
  year      = {2024},
  note      = {arXiv:2401.17547}
}"""
DDIM = """@inproceedings{song2021ddim,
  title     = {Denoising Diffusion Implicit Models},
  author    = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021},
  note      = {arXiv:2010.02502}
}"""
DPM_SOLVER = """@article{lu2022dpmsolverpp,
  title   = {{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models},
  author  = {Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun},
  journal = {arXiv:2211.01095},
  year    = {2022}
}"""
TASKS = {
    "ip2p": """@inproceedings{brooks2023instructpix2pix,
  title     = {{InstructPix2Pix}: Learning to Follow Image Editing Instructions},
  author    = {Brooks, Tim and Holynski, Aleksander and Efros, Alexei A.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023},
  note      = {arXiv:2211.09800}
}""",
    "controlnet": """@inproceedings{zhang2023controlnet,
  title     = {Adding Conditional Control to Text-to-Image Diffusion Models},
  author    = {Zhang, Lvmin and Rao, Anyi and Agrawala, Maneesh},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023},
  note      = {arXiv:2302.05543}
}""",
    "stablesr": """@article{wang2024stablesr,
  title   = {Exploiting Diffusion Prior for Real-World Image Super-Resolution},
  author  = {Wang, Jianyi and Yue, Zongsheng and Zhou, Shangchen and Chan, Kelvin C. K. and Loy, Chen Change},
  journal = {International Journal of Computer Vision (IJCV)},
  year    = {2024},
  note    = {arXiv:2305.07015}
}""",
}


def citations(task: str, sampler: str) -> list[str]:
    """BibTeX entries: the compression, the task's model, the sampler."""
    entries = [PAPER, *([TASKS[task]] if task in TASKS else []), DDIM]
    return [*entries, DPM_SOLVER] if sampler == "dpm_solver" else entries
