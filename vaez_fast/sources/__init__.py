"""Data that any model can be trained on: a dict of entries that all have N rows.

An entry is a tensor (N, ...), or `SparseRows` (N, G), whose rows are made dense when they are
gathered. Entries lie on one device, and a training step gathers its rows there by index.

| made by | from | entries |
| --- | --- | --- |
| `load_npz` | arrays and sparse matrices in an .npz; `save_npz` writes one | those of the file |
| `image_folder` | .png and .jpg files | `x` |
| `cifar10`, `svhn` | the files that torchvision reads | `x`, `label` |
| `sprites` | a seed | `x`, `factors` |

A dict of one's own tensors needs none of them. `check_entries` says whether the entries fit each
other, and `split` holds out some rows.
"""

from .entries import Entry, check_entries, split, take
from .images import image_folder
from .named import cifar10, svhn
from .npz import load_npz, save_npz
from .sparse import SparseRows
from .sprites import sprites

__all__ = [
    "Entry",
    "SparseRows",
    "check_entries",
    "cifar10",
    "image_folder",
    "load_npz",
    "save_npz",
    "split",
    "sprites",
    "svhn",
    "take",
]
