import contextlib

import numpy as np
import pytest
import torch
from torch import distributed, nn

from jetfoundry.errors import InputError
from jetfoundry.loading.batch import Batch, MicroBatch, Position
from jetfoundry.train.finite import FiniteWatch, nth_jet
from jetfoundry.train.loop import TrainConfig, Validation, fit, predict
from jetfoundry.train.optim import OptimConfig
from jetfoundry.train.step import Stepper

CPU = torch.device("cpu")
OPTIONS = TrainConfig(epochs=4, optim=OptimConfig(lr=0.05), log_steps=1, seed=5)
STEPS = 3


class Toy(nn.Module):
    """Mean of the features over real particles, dropout, one linear layer: (b, 2, P) -> (b, 2)."""

    inputs = ("pf_features", "pf_vectors", "pf_mask")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, features, vectors, mask):
        mean = (features * mask).sum(dim=2) / mask.sum(dim=2)
        return self.linear(self.dropout(mean))


def batch_number(number, size=8, micro=2, scale=1.0):
    """A batch that depends on its number only; class 1 has larger features."""
    rng = np.random.default_rng(number)
    parts = []
    for _ in range(micro):
        labels = torch.from_numpy(rng.integers(0, 2, size // micro))
        features = torch.from_numpy(rng.normal(size=(size // micro, 2, 3)).astype(np.float32)) + labels[:, None, None]
        ones = torch.ones(size // micro, 1, 3)
        parts.append(MicroBatch({"pf_features": scale * features, "pf_vectors": ones, "pf_mask": ones}, labels))
    return Batch(tuple(parts), size)


@contextlib.contextmanager
def stream(start):
    def batches():
        number = start.batch
        while True:
            yield batch_number(number), Position(0, 0, number + 1)
            number += 1

    yield batches()


def validate(model):
    (_, logits, labels) = next(predict(model, iter([batch_number(1000, size=64)]), CPU))
    loss = nn.functional.cross_entropy(logits, labels).item()
    return Validation(loss, (logits.argmax(1) == labels).float().mean().item(), len(labels))


def train(state=None, save=lambda state, metrics: None, options=OPTIONS, log=lambda row: None, stream=stream):
    model = Toy()
    fit(model, stream, validate, options, steps_per_epoch=STEPS, device=CPU, state=state, save=save, log=log)
    return model


def copy(state):
    return torch.utils._pytree.tree_map(lambda value: value.clone() if torch.is_tensor(value) else value, state)


def test_loss_falls():
    rows = []
    train(log=rows.append, options=TrainConfig(epochs=20, optim=OptimConfig(lr=0.05), log_steps=1))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_run_continued_from_any_checkpoint_equals_the_uninterrupted_one_bit_for_bit():
    states = []
    options = TrainConfig(**{**OPTIONS.__dict__, "checkpoint_steps": 2})
    whole = train(save=lambda state, metrics: states.append(copy(state)), options=options)
    assert [state["step"] for state in states] == [2, 3, 4, 6, 8, 9, 10, 12]  # every 2 steps, and at epoch ends
    for state in states[:-1]:
        continued = train(state=state, options=options)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), continued.parameters(), strict=True))


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    def one_step(micro):
        @contextlib.contextmanager
        def single(start):
            whole = batch_number(1, micro=1)
            inputs, labels = whole.micro[0]
            cuts = [slice(i * 8 // micro, (i + 1) * 8 // micro) for i in range(micro)]
            parts = [MicroBatch({name: x[cut] for name, x in inputs.items()}, labels[cut]) for cut in cuts]
            yield iter([(Batch(tuple(parts), 8), Position())])

        model = Toy()
        model.dropout.p = 0.0
        options = TrainConfig(epochs=1, optim=OptimConfig(lr=0.05, clip_norm=0))
        fit(model, single, validate, options, steps_per_epoch=1, device=CPU, save=lambda s, m: None)
        return model.linear.weight.grad

    assert torch.allclose(one_step(1), one_step(4), atol=1e-7)


def test_validation_and_metrics_are_saved_at_every_epoch_end():
    saved = []
    train(save=lambda state, metrics: saved.append(metrics))
    assert [metrics["epoch"] for metrics in saved] == [1, 2, 3, 4]
    assert all(metrics["val_jets"] == 64 and 0 <= metrics["val_accuracy"] <= 1 for metrics in saved)


def test_a_loss_that_is_not_finite_stops_the_run():
    @contextlib.contextmanager
    def broken(start):
        yield iter([(batch_number(0, scale=float("nan")), Position())])

    with pytest.raises(
        InputError, match=r"step 1: the training loss of 8 of 8 jets is not finite.*the first is nan for jet 0 of 8"
    ):
        train(stream=broken)


def test_the_first_jet_whose_loss_is_not_finite_is_named():
    @contextlib.contextmanager
    def broken(start):
        good, bad = batch_number(0), batch_number(1)
        bad.micro[1].inputs["pf_features"][2] = float("inf")  # the third jet of the second half: jet 6
        yield iter([(good, Position()), (bad, Position(batch=1))])

    saved, model = [], Toy()
    model.dropout.p = 0.0
    how = {"save": lambda state, metrics: saved.append(state), "where": lambda batch, index: f"shard 7, {index}"}
    with pytest.raises(InputError, match=r"step 2: the training loss of 1 of 8 jets is not finite; .* for shard 7, 6"):
        fit(model, broken, validate, OPTIONS, steps_per_epoch=2, device=CPU, **how)
    assert saved == []


def test_workers_with_good_jets_name_the_bad_one_of_another_worker(monkeypatch):
    def gather(messages, mine):
        assert mine is None
        messages[:] = [None, "step 3: the training loss of 1 of 8 jets is not finite; the first is nan for jet 5"]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    with pytest.raises(InputError, match=r"^worker 1, step 3: .* nan for jet 5\. Look at these inputs"):
        FiniteWatch(CPU, nth_jet).add(3, batch_number(0), torch.zeros(8), torch.tensor(float("nan")))


def test_gradients_that_overflow_in_fp16_at_whatever_scale_stop_the_run():
    stepper = Stepper(Toy(), OPTIONS.optim, "fp16", CPU)
    stepper.check_scale()
    stepper.scaler.load_state_dict(stepper.scaler.state_dict() | {"scale": 1e-4})
    with pytest.raises(InputError, match=r"fp16: gradients overflow even at a loss scale of 0.0001"):
        stepper.check_scale()


def test_a_gradient_that_is_not_finite_stops_the_run():
    class Broken(Toy):
        def forward(self, features, vectors, mask):
            out = super().forward(features, vectors, mask)
            out.register_hook(lambda grad: grad * float("inf"))
            return out

    with pytest.raises(InputError, match=r"step 1: the gradient's norm is (nan|inf); the largest loss, .* jet \d of 8"):
        fit(Broken(), stream, validate, OPTIONS, steps_per_epoch=2, device=CPU, save=lambda s, m: None)


def test_the_average_of_the_weights_is_validated_and_continued_bit_for_bit():
    options = TrainConfig(epochs=4, optim=OptimConfig(lr=0.05, ema=0.9), log_steps=1, checkpoint_steps=2)
    states, judged = [], []

    def judge(model):
        judged.append(model.linear.weight.detach().clone())
        return validate(model)

    def run(state=None, save=lambda s, m: None):
        model = Toy()
        fit(model, stream, judge, options, steps_per_epoch=STEPS, device=CPU, state=state, save=save)
        return model

    model = run(save=lambda state, metrics: states.append(copy(state)))
    last = judged[-1]
    assert not torch.equal(last, model.linear.weight)
    judged.clear()
    run(state=states[3])
    assert torch.equal(judged[-1], last)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_lower_precision_trains_to_about_the_same_loss(amp):
    def last_loss(amp):
        rows = []
        options = TrainConfig(epochs=20, optim=OptimConfig(lr=0.05), log_steps=1, amp=amp)
        train(log=rows.append, options=options)
        return np.mean([row["loss"] for row in rows if "loss" in row][-6:])

    assert last_loss(amp) == pytest.approx(last_loss("off"), rel=0.1)


def test_a_row_of_metrics_says_how_fast_how_full_and_how_steep():
    rows = []
    train(log=rows.append)
    row = rows[1]
    assert 0 <= row["accuracy"] <= 1
    assert row["grad_norm"] > 0
    assert row["padding"] == 0
    assert row["memory_mib"] > 10
    assert row["jets_per_s_worker"] == row["jets_per_s"] > 0
    assert 0 <= row["data_wait"] <= 1
