"""Losses on logits. N samples, C classes, z logits, p = softmax(z / T), s student, t teacher.

Means are over N and sums over C, unless a docstring says otherwise. Every loss is zero where the
student equals the teacher, except `margin` and `cross_entropy`, which has no teacher.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pipeline.distill.losses.numerics import centred, unit
from pipeline.distill.losses.registry import loss


@loss("labels", fractions=("label_smoothing",))
def cross_entropy(
    student: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross entropy of softmax(z_s) with labels: int64 [N], or probabilities [N, C].

    Smoothing mixes the labels with the uniform distribution (1512.00567). Range [0, inf).
    """
    if labels.is_floating_point():
        labels = labels.to(student.dtype)
    return F.cross_entropy(student, labels, label_smoothing=label_smoothing)


@loss("logits", positive=("temperature",))
def kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 4.0,
    standardise: bool = False,
) -> torch.Tensor:
    """T² KL(p_t ‖ p_s). Hinton, Vinyals, Dean 2015, arXiv 1503.02531. Range [0, inf).

    T² keeps the size of the gradient when T changes. `standardise` uses z-scores (2403.01427).
    """
    log_s, log_t = _log_softmax(student, teacher, temperature, standardise)
    return temperature**2 * _divergence(log_t, log_s)


@loss("logits", positive=("temperature",))
def symmetric_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 4.0,
    balance: float = 1.0,
    standardise: bool = False,
) -> torch.Tensor:
    """T² [KL(p_t ‖ p_s) + λ KL(p_s ‖ p_t)] with λ = `balance`. Range [0, inf).

    λ = 1 is Jeffreys' divergence, λ = 0 is `kl`. The second part is mode-seeking: it
    punishes probability where the teacher has none (cf. 2212.12965, 2103.05959).
    """
    log_s, log_t = _log_softmax(student, teacher, temperature, standardise)
    return temperature**2 * (_divergence(log_t, log_s) + balance * _divergence(log_s, log_t))


@loss("logits")
def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(z_s - z_t)², a mean over N and C (2105.08919). Range [0, inf).

    Ba, Caruana (1312.6184) use half the sum over C, which is C / 2 times this. In contrast to `kl`,
    it also compares the mean of the logits over C, which softmax ignores.
    """
    return F.mse_loss(student, teacher)


@loss("logits")
def margin(
    student: torch.Tensor, teacher: torch.Tensor, *, delta: float = 1.0, balance: float = 1.0
) -> torch.Tensor:
    """max(0, d + δ) + λ max(0, δ - d) of d = z_t - z_s, a mean over N and C; λ = `balance`.

    For λ = 1 this is 2δ + max(0, |d| - δ): the constant 2δ and an L1 distance that ignores
    differences within the margin δ. In general it is δ (1 + λ) where the student equals the
    teacher. Its minimum 2δ min(1, λ) lies at d = -δ for λ < 1 and at d = δ for λ > 1, towards the
    side with the smaller weight. It is the two-sided hinge of 1811.03233 (there squared, on
    activations), with the teacher's value in place of its sign.
    """
    difference = teacher - student
    return (F.relu(difference + delta) + balance * F.relu(delta - difference)).mean()


@loss("logits", needs_labels=True, positive=("temperature",))
def dkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardise: bool = False,
) -> torch.Tensor:
    """T² [`alpha` KL(b_t ‖ b_s) + `beta` KL(q_t ‖ q_s)]. Zhao et al. 2022, arXiv 2203.08679.

    b is (p of the target class, p of all others together), q the softmax over the others
    alone. `alpha` 1 with `beta` 1 - p_t[target] is `kl`. Labels: int64 [N], or
    probabilities [N, C], whose largest is the target. With two classes the second part is 0.
    Range [0, inf).
    """
    if standardise:
        student, teacher = _standardise(student), _standardise(teacher)
    target = labels.argmax(1) if labels.is_floating_point() else labels
    target = target[:, None]
    index = torch.arange(student.shape[1] - 1, device=student.device)
    others = index + (index >= target)  # [N, C - 1]: every class but the target
    binary, rest = [], []
    for logits in (student / temperature, teacher / temperature):
        other = logits.gather(1, others)
        odds = logits.gather(1, target) - other.logsumexp(1, keepdim=True)
        binary.append(F.logsigmoid(torch.cat([odds, -odds], dim=1)))
        rest.append(F.log_softmax(other, dim=1))
    target_part = _divergence(binary[1], binary[0])
    other_part = _divergence(rest[1], rest[0])
    return temperature**2 * (alpha * target_part + beta * other_part)


@loss("logits", batchwise=True, positive=("temperature",))
def dist(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """T² [`inter` (1 - r of p's rows) + `intra` (1 - r of its columns)].

    r is Pearson's correlation between student and teacher: of a sample over the classes,
    mean over N; of a class over the batch, mean over C. Huang et al. 2022, arXiv 2205.10536.
    The paper has T = 1; T² is in the authors' code. Range [0, 2 T² (inter + intra)].

    Where p is constant, r is undefined: 1 - r is then 0 if both are constant, 1/2 if one is, with
    gradient 0. For a batch of one, the `intra` part is 0.
    """
    p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    rows, columns = _correlation_distance(p_s, p_t, dim=1), _correlation_distance(p_s, p_t, dim=0)
    return temperature**2 * (inter * rows + intra * columns)


def _log_softmax(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, standardise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if standardise:
        student, teacher = _standardise(student), _standardise(teacher)
    return F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q), a sum over C and a mean over N."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def _standardise(logits: torch.Tensor) -> torch.Tensor:
    """Each row's z-score (z - mean) / (std + 1e-7). Sun et al. 2024, arXiv 2403.01427.

    The variance divides by C - 1, as in the authors' code. A student then has to match the order
    and the relative distances of the teacher's logits, not their scale; with two classes only the
    order. A constant row gives 0 and gradient 0.
    """
    scores = centred(logits, 1)
    norm = torch.linalg.vector_norm(scores, dim=1, keepdim=True)
    deviation: torch.Tensor = norm / (logits.shape[1] - 1) ** 0.5
    return scores / (deviation + 1e-7)


def _correlation_distance(x: torch.Tensor, y: torch.Tensor, dim: int) -> torch.Tensor:
    """1 - r along `dim`, a mean over the other: half the squared distance of unit vectors."""
    unit_x, unit_y = (unit(centred(z, dim), dim) for z in (x, y))
    return (unit_x - unit_y).square().sum(dim).mean() / 2
