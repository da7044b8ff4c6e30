import pytest
import torch
from sklearn.metrics import roc_auc_score

from jetfoundry.train.auc import BinnedAuc


def _binned():
    return BinnedAuc("A vs B", (0, 1), (3,), (1.0, 0.5))


def test_the_auc_of_bins_is_that_of_the_scores():
    torch.manual_seed(2)
    labels = torch.randint(0, 4, (4000,))
    logits = torch.randn(4000, 4) + 1.5 * torch.nn.functional.one_hot(labels, 4)
    halves = [_binned(), _binned()]
    for auc, part in zip(halves, (slice(0, 1500), slice(1500, None)), strict=True):
        auc.add(logits[part], labels[part])
    both = _binned()
    both.counts = halves[0].counts + halves[1].counts
    p = logits.softmax(1)
    score = (p[:, 0] + 0.5 * p[:, 1]) / p[:, 3]
    used = labels != 2
    assert both.counts.sum() == used.sum()
    assert both.value() == pytest.approx(roc_auc_score(labels[used] != 3, score[used].log()), abs=1e-3)


def test_without_jets_of_both_sides_there_is_no_auc():
    auc = _binned()
    auc.add(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    assert auc.value() is None
