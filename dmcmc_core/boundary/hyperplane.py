"""A semantic boundary: the hyperplane that separates latents of two kinds, and edits along its normal.

Zhu et al. 2023 (arXiv 2302.08357): a linear support vector machine on latents of labelled images.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmcmc_core.errors import UserError, number, one_of

LEAST = 2
"""Latents of each kind that a boundary needs."""


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A hyperplane n . z + intercept = 0 between latents of two kinds, in the space of the latents.

    ``normal`` (*shape) float32 has unit length and points to the larger label; ``accuracy`` is the share of latents on
    their side, of those held out where there are any; ``card`` tells what the latents are: JSON, free to the caller,
    such as their time, their level (z or h) and the hash of their network.
    """

    normal: Tensor
    intercept: float
    accuracy: float
    card: dict[str, Any] = dataclasses.field(default_factory=dict)

    def distances(self, latents: Tensor) -> Tensor:
        """Return the signed distance of latents (B, *shape) from the hyperplane, (B,); positive for the larger label.

        Raises:
            UserError: for latents of another shape, or with NaN or infinity.
        """
        _check_shape(latents, self.normal)
        return _finite(latents.flatten(1).to(self.normal) @ self.normal.flatten()) + self.intercept

    def save(self, path: str | Path) -> None:
        """Write the boundary as safetensors; a file of that name is only replaced once the new one is whole."""
        from safetensors.torch import save_file

        from dmcmc_core.files import replacing

        card = {"intercept": self.intercept, "accuracy": self.accuracy, "card": self.card}
        with replacing(path) as part:
            save_file({"normal": self.normal.contiguous()}, part, metadata={"boundary": json.dumps(card)})

    def check(self, **card: Any) -> None:
        """Raise UserError unless what the boundary's card says of some names is what is given."""
        for name, value in card.items():
            if name in self.card and self.card[name] != value:
                raise UserError(f"this boundary is of another {name}, {self.card[name]!r:.40}, not {value!r:.40}")


def load(path: str | Path) -> Boundary:
    """Return a boundary that :meth:`Boundary.save` wrote.

    Raises:
        UserError: for a file that is missing, damaged or no boundary; a pickle is none, and is never executed.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["boundary"])
            normal = file.get_tensor("normal").float()
            made = Boundary(normal, float(about["intercept"]), float(about["accuracy"]), dict(about["card"]))
        number("its intercept", made.intercept)
        number("its accuracy", made.accuracy, least=0, most=1)
    except Exception as error:  # whatever a broken file brings about
        raise UserError(
            f"{path} is no boundary: it must be the safetensors file that Boundary.save writes. The normal of a "
            "pickled scikit-learn SVC is its coef_ over its length: save that in its own environment"
        ) from error
    _check_length(normal, f"the normal in {path}")
    return made


def fit(
    latents: Tensor,
    labels: Tensor | Sequence[int],
    held_out: tuple[Tensor, Tensor | Sequence[int]] | None = None,
    penalty: float = 1.0,
    card: dict[str, Any] | None = None,
) -> Boundary:
    """Return the boundary of a linear support vector machine, computed in the span of the latents.

    The dual problem knows latents by their inner products alone, n^2 numbers however many a latent has; the normal is
    the sum of the support vectors by their weights, which is then scaled to length 1.

    Args:
        latents: (n, *shape).
        labels: (n,), of two values; the normal points to the larger.
        held_out: other latents and labels, which the accuracy is of.
        penalty: C of the machine.
        card: of the boundary.

    Raises:
        UserError: for labels that are not of two values or as many as the latents, too few of one value, latents that
            are not finite or no rows of numbers, and others held out that do not fit them.
    """
    if latents.ndim < 2:
        raise UserError(f"latents must have shape (n, *shape), not {tuple(latents.shape)}")
    flat, labels = latents.flatten(1), _checked(labels, latents)
    values = labels.unique()
    if len(values) != 2:
        raise UserError(f"labels must be of two values, not of {len(values)}: {values.tolist()[:5]}")
    sides = _sides(labels, values)
    if (count := int(min((sides == -1).sum(), (sides == 1).sum()))) < LEAST:
        raise UserError(f"each kind needs {LEAST} latents, one has {count}")
    number("penalty", penalty, above=0)
    seen, known = (latents, labels) if held_out is None else held_out
    wanted = _sides(_checked(known, seen), values)
    if not len(seen):
        raise UserError("there must be latents held out, or held_out=None")
    _check_shape(seen, latents[0])
    weights, intercept = _machine(_products(flat), sides, penalty)
    direction = _weighted(weights.to(flat.device), flat)
    length = torch.linalg.vector_norm(direction).item()
    made = Boundary((direction / length).float().reshape(latents.shape[1:]), intercept / length, 0.0)
    accuracy = ((made.distances(seen).cpu() > 0) == (wanted > 0)).double().mean().item()
    return dataclasses.replace(made, accuracy=accuracy, card=dict(card or {}))


ROWS, COLUMNS = 128, 4096
"""Latents whose inner products are taken at once, and so many of their numbers: in double precision and in a cache."""


def _products(flat: Tensor) -> Tensor:
    """Return the inner products of latents (n, d), (n, n) float64; those of a pair are taken once."""
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for columns in flat.split(COLUMNS, 1):
        parts = columns.double().split(ROWS)
        for rows, part in zip(products.split(ROWS), parts, strict=True):
            for block, other in zip(rows.split(ROWS, 1), parts, strict=True):
                block.addmm_(part, other.T)
                if other is part:
                    break
    return (products.tril() + products.tril(-1).T).cpu()


def _machine(products: Tensor, sides: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Return the weight of each latent in the normal (n,), and the intercept, of inner products and sides."""
    from sklearn.svm import SVC

    _finite(products.diagonal())
    machine = SVC(kernel="precomputed", C=penalty).fit(products.numpy(), sides.numpy())
    weights = torch.zeros(len(sides), dtype=torch.float64)
    weights[torch.from_numpy(machine.support_).long()] = torch.from_numpy(machine.dual_coef_[0])
    if weights @ products @ weights <= 1e-20 * weights.abs() @ products.abs() @ weights.abs():
        raise UserError("the two kinds of latents are the same: no hyperplane is between them")
    return weights, machine.intercept_[0]


def _weighted(weights: Tensor, flat: Tensor) -> Tensor:
    """Return the weighted sum of latents, (d,) float64."""
    return torch.cat([weights.to(flat.device) @ columns.double() for columns in flat.split(COLUMNS, 1)]).cpu()


def _checked(labels: Tensor | Sequence[int], latents: Tensor) -> Tensor:
    try:
        labels = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"labels must be numbers, not {labels!r:.60}") from error
    if labels.shape != (len(latents),):
        raise UserError(f"every latent needs a label: {len(latents)} of them, not {tuple(labels.shape)}")
    return labels


def _sides(labels: Tensor, values: Tensor) -> Tensor:
    """Return 1 for the larger of two values and -1 for the smaller, (n,); UserError for any other."""
    if other := sorted(set(labels.tolist()) - set(values.tolist())):
        raise UserError(f"labels must be {values.min()} or {values.max()}, not {other[0]}")
    return torch.where(labels == values.max(), 1, -1)


def edit(latent: Tensor, normal: Tensor, strength: float, how: str = "set") -> Tensor:
    """Return latents moved along a unit normal, of the shape and dtype of ``latent``.

    Args:
        latent: (B, *shape).
        normal: (*shape), or flattened; of unit length.
        strength: zeta, in units of the latents.
        how: ``set``: the projection on the normal becomes zeta, z + (zeta - n . z) n, as released; ``add``: it grows by
            zeta, z + zeta n.

    Raises:
        UserError: for another ``how``, a strength that is no finite number, a normal of another shape or length, and
            latents with NaN or infinity.
    """
    one_of("how", how, "set", "add")
    number("strength", strength)
    flat, n = latent.flatten(1), normal.reshape(-1).to(latent)
    if flat.shape[1] != len(n):
        raise UserError(f"a normal of {len(n)} numbers does not fit latents of {flat.shape[1]}")
    _check_length(normal, "the normal")
    now = _finite(flat @ n)
    shift = strength - now if how == "set" else torch.full_like(now, strength)
    return (flat + shift[:, None] * n).reshape(latent.shape)


def orthogonal(normals: Sequence[Tensor]) -> list[Tensor]:
    """Return unit normals each orthogonal to those before it, for edits of several attributes at once (Gram-Schmidt).

    Raises:
        UserError: for a normal that lies in the span of those before it.
    """
    made: list[Tensor] = []
    for i, normal in enumerate(normals):
        left = normal.flatten().double()
        for other in made:
            left = left - (left @ other) * other
        length = torch.linalg.vector_norm(left)
        if length < 1e-6:
            raise UserError(f"normal {i} lies in the span of those before it: leave one of them out")
        made.append(left / length)
    return [m.to(n).reshape(n.shape) for m, n in zip(made, normals, strict=True)]


def _finite(products: Tensor) -> Tensor:
    """Return what latents were multiplied to; UserError where that shows that they hold NaN or infinity."""
    if not products.isfinite().all():
        raise UserError("latents must be finite: they hold NaN or infinity")
    return products


def _check_length(normal: Tensor, what: str) -> None:
    length = torch.linalg.vector_norm(normal, dtype=torch.float64).item()
    if not abs(length - 1) < 1e-3:
        raise UserError(f"{what} must have length 1, not {length:g}")


def _check_shape(latents: Tensor, normal: Tensor) -> None:
    if latents.shape[1:] != normal.shape:
        raise UserError(f"latents must have shape (B, {', '.join(map(str, normal.shape))}), not {tuple(latents.shape)}")
