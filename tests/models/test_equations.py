"""Every cell against its written equations, in NumPy float64; gradients against finite differences and against BPTT.

Gates bear the names of the field: forget, input, output (LSTM), update, reset (GRU), candidate. PyTorch's forms differ
from the papers' in three places, and the equations below are PyTorch's:

- GRU: the reset gate multiplies the recurrent product, n = tanh(W x + b + r (U h + c)); Cho et al. (2014) gate the
  state before it, n = tanh(W x + U (r h)). One product of h serves all gates so; c is a bias of its own.
- GRU: h' = (1 - z) n + z h. In Cho et al. z is the share of the old state as well; Chung et al. (2014) swap roles.
- Every gate has two biases (of W x and of U h), of which only the sum matters, but for the GRU's candidate.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.config import PredictorConfig
from models.families import build
from models.families.convolution import CausalConvolution
from models.predictor import HORIZONS, Network

STEPS, BATCH, HIDDEN = 9, 3, 5
TOLERANCE = {"rtol": 0.0, "atol": 1e-12}  # float64 against float64: only the order of sums differs


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def rnn_step(w, layer, x, h):
    """h' = tanh(W x + b + U h + c)."""
    return np.tanh(x @ w[f"weight_ih_l{layer}"].T + w[f"bias_ih_l{layer}"]
                   + h @ w[f"weight_hh_l{layer}"].T + w[f"bias_hh_l{layer}"])  # fmt: skip


def gru_step(w, layer, x, h):
    """Reset r, update z, candidate n; rows of PyTorch's matrices in this order."""
    w_reset, w_update, w_candidate = np.split(w[f"weight_ih_l{layer}"], 3)
    u_reset, u_update, u_candidate = np.split(w[f"weight_hh_l{layer}"], 3)
    b_reset, b_update, b_candidate = np.split(w[f"bias_ih_l{layer}"], 3)
    c_reset, c_update, c_candidate = np.split(w[f"bias_hh_l{layer}"], 3)
    reset = sigmoid(x @ w_reset.T + b_reset + h @ u_reset.T + c_reset)
    update = sigmoid(x @ w_update.T + b_update + h @ u_update.T + c_update)
    candidate = np.tanh(x @ w_candidate.T + b_candidate + reset * (h @ u_candidate.T + c_candidate))
    return (1.0 - update) * candidate + update * h


def lstm_step(w, layer, x, h, c):
    """Input i, forget f, candidate g, output o; rows of PyTorch's matrices in this order."""
    raw = (x @ w[f"weight_ih_l{layer}"].T + w[f"bias_ih_l{layer}"]
           + h @ w[f"weight_hh_l{layer}"].T + w[f"bias_hh_l{layer}"])  # fmt: skip
    input_gate, forget, candidate, output = np.split(raw, 4, 1)
    c = sigmoid(forget) * c + sigmoid(input_gate) * np.tanh(candidate)
    return sigmoid(output) * np.tanh(c), c


def numbers(network: Network, prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters under a prefix, as arrays."""
    return {
        name.removeprefix(prefix): t.detach().numpy()
        for name, t in network.named_parameters()
        if name.startswith(prefix)
    }


def made(cell, layers=1, **changes) -> tuple[Network, torch.Tensor, torch.Tensor]:
    """A float64 network with every parameter moved, inputs, and a state that it may be in."""
    torch.manual_seed(7)
    network = build(PredictorConfig(cell, hidden=HIDDEN, layers=layers, **changes)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inputs = torch.randn(STEPS, BATCH, network.input_width, dtype=torch.float64)
    with torch.no_grad():
        _, state = network(torch.randn_like(inputs))
    return network, inputs, state


def check(network, inputs, state, hidden, end):
    """Whole window and steps of both torch and serving against NumPy."""
    with torch.no_grad():
        whole, after = network(inputs, state)
        np.testing.assert_allclose(whole.numpy(), hidden, **TOLERANCE)
        np.testing.assert_allclose(after.numpy(), end, **TOLERANCE)
        for t in range(STEPS):
            now, state = network.step(inputs[t], state)
            np.testing.assert_allclose(now.numpy(), hidden[t], **TOLERANCE)
        np.testing.assert_allclose(state.numpy(), end, **TOLERANCE)


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize(("cell", "step"), [("rnn", rnn_step), ("gru", gru_step)])
def test_recurrent_cells_are_their_equations(cell, step, layers):
    """Tanh RNN and GRU, each layer fed with the one below."""
    network, inputs, state = made(cell, layers)
    w = numbers(network, "rnn.")
    h = np.split(state.numpy(), layers, 1)
    hidden = []
    for x in inputs.numpy():
        for layer in range(layers):
            h[layer] = x = step(w, layer, x, h[layer])
        hidden.append(x)
    check(network, inputs, state, np.stack(hidden), np.concatenate(h, 1))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_lstm_is_its_equations(layers):
    """State: hidden states of all layers, then cell states of all layers."""
    network, inputs, state = made("lstm", layers)
    w = numbers(network, "rnn.")
    parts = np.split(state.numpy(), 2 * layers, 1)
    h, c = parts[:layers], parts[layers:]
    hidden = []
    for x in inputs.numpy():
        for layer in range(layers):
            h[layer], c[layer] = lstm_step(w, layer, x, h[layer], c[layer])
            x = h[layer]
        hidden.append(x)
    check(network, inputs, state, np.stack(hidden), np.concatenate((*h, *c), 1))


def test_the_reset_gate_comes_after_the_product():
    """Cho et al. gate the state before the product: with a reset gate that is no multiple of one, another cell."""
    network, inputs, state = made("gru")
    w = numbers(network, "rnn.")
    x, h = inputs[0].numpy(), state.numpy()
    w_reset, w_update, w_candidate = np.split(w["weight_ih_l0"], 3)
    u_reset, u_update, u_candidate = np.split(w["weight_hh_l0"], 3)
    b = np.split(w["bias_ih_l0"], 3)
    c = np.split(w["bias_hh_l0"], 3)
    reset = sigmoid(x @ w_reset.T + b[0] + h @ u_reset.T + c[0])
    update = sigmoid(x @ w_update.T + b[1] + h @ u_update.T + c[1])
    before = np.tanh(x @ w_candidate.T + b[2] + (reset * h) @ u_candidate.T + c[2])
    of_paper = (1.0 - update) * before + update * h
    now, _ = network.step(inputs[0], state)
    assert float(np.abs(now.detach().numpy() - of_paper).max()) > 1e-3


def test_convolutions_are_their_equations():
    """y_t = tanh(b + sum over j of W_j x_{t - j D}), D = 1, 2, 4; before the window lies the state."""
    network, inputs, state = made("tdnn", 3)
    past, below, ends = state.numpy(), inputs.numpy(), []
    at = 0
    for layer in network.layers:
        assert isinstance(layer, CausalConvolution)
        memory, channels, dilation = layer.memory, layer.channels, layer.dilation
        before = past[:, at : at + memory * channels].reshape(BATCH, memory, channels).transpose(1, 0, 2)
        at += memory * channels
        known = np.concatenate((before, below))
        taps = np.split(layer.taps.weight.detach().numpy(), layer.kernel, 1)[::-1]  # W_0 belongs to the newest
        above = np.empty((STEPS, BATCH, HIDDEN))
        for t in range(STEPS):
            raw = layer.taps.bias.detach().numpy() + sum(
                known[memory + t - j * dilation] @ tap.T for j, tap in enumerate(taps)
            )
            above[t] = np.tanh(raw)
        ends.append(known[STEPS:].transpose(1, 0, 2).reshape(BATCH, -1))
        below = above
    check(network, inputs, state, below, np.concatenate(ends, 1))


def test_a_convolution_before_a_gru_is_both_equations():
    """The front end's output is what the GRU's gates see; the head sees state and raw inputs."""
    network, inputs, state = made("conv")
    channels, w = network.input_width, numbers(network, "rnn.")
    memory = state[:, : 2 * channels].numpy().reshape(BATCH, 2, channels).transpose(1, 0, 2)
    known, h = np.concatenate((memory, inputs.numpy())), state[:, 2 * channels :].numpy()
    taps, bias = np.split(network.front.taps.weight.detach().numpy(), 3, 1), network.front.taps.bias.detach().numpy()
    hidden = []
    for t in range(STEPS):
        seen = np.tanh(bias + sum(known[t + j] @ tap.T for j, tap in enumerate(taps)))
        h = gru_step(w, 0, seen, h)
        hidden.append(h)
    end = np.concatenate((known[STEPS:].transpose(1, 0, 2).reshape(BATCH, -1), h), 1)
    check(network, inputs, state, np.stack(hidden), end)


def test_the_decoder_feeds_on_its_own_forecasts():
    """One GRU step for each horizon, begun with the present value and the encoder's state."""
    network, inputs, _ = made("seq2seq")
    cell = {f"{name}_l0": p.detach().numpy() for name, p in network.decoder.named_parameters()}
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    h = np.random.default_rng(1).normal(size=(BATCH, HIDDEN))
    mixtures = network.mixtures(torch.from_numpy(h), inputs[0])
    x = inputs[0].numpy()
    fed = x[:, :1]
    for column in range(len(HORIZONS)):
        h = gru_step(cell, 0, fed, h)
        raw = (np.concatenate((h, x), 1) @ weight.T + bias).reshape(BATCH, 3, 3)
        np.testing.assert_allclose(mixtures.logits[:, column].detach().numpy(), raw[:, 0], **TOLERANCE)
        np.testing.assert_allclose(mixtures.location[:, column].detach().numpy(), raw[:, 1], **TOLERANCE)
        np.testing.assert_allclose(
            mixtures.log_scale[:, column].detach().numpy(), np.clip(raw[:, 2], -4.5, 2.5), **TOLERANCE
        )
        share = np.exp(raw[:, 0]) / np.exp(raw[:, 0]).sum(1, keepdims=True)
        fed = (share * raw[:, 1]).sum(1, keepdims=True)


def test_the_filter_is_bayes_rule():
    """P_t(k) ~ N(u_t; mu_k, s_k) sum over j of p_{t-1}(j) A_jk, in plain probabilities."""
    network, inputs, state = made("hmm")
    w = numbers(network)
    transition = np.exp(w["transition"]) / np.exp(w["transition"]).sum(1, keepdims=True)
    mean, sd = w["mean"][:, 0], np.exp(w["log_sd"][:, 0])
    p = np.exp(state.numpy()) / np.exp(state.numpy()).sum(1, keepdims=True)
    hidden = []
    for u in inputs[..., :1].numpy():
        p = np.exp(-0.5 * ((u - mean) / sd) ** 2) / sd * (p @ transition)
        p /= p.sum(1, keepdims=True)
        hidden.append(p)
    with torch.no_grad():
        whole, _ = network(inputs, state)
        np.testing.assert_allclose(whole.numpy(), np.stack(hidden), rtol=0, atol=1e-10)
        served = network.mixtures(whole[-1], inputs[-1])
    for column, k in enumerate(HORIZONS):
        ahead = p @ np.linalg.matrix_power(transition, k)
        share = np.exp(served.logits[:, column].numpy())
        location = served.location[:, column].numpy()
        np.testing.assert_allclose((share * location).sum(1), ahead @ mean, rtol=0, atol=1e-10)
        variance = (math.pi * np.exp(served.log_scale[:, column].numpy())) ** 2 / 3.0
        second = (share * (variance + location**2)).sum(1)
        np.testing.assert_allclose(second, ahead @ (sd**2 + mean**2), rtol=0, atol=1e-9)


def test_an_autoregression_is_a_sum_over_lags():
    """u_{t+k} = c_k + sum over i of w_ki u_{t-i}; before the window lie the lags of the state."""
    network, inputs, state = made("ar")
    w = numbers(network)
    past = list(state.numpy().T[::-1])
    past.extend(inputs[..., 0].numpy())
    with torch.no_grad():
        hidden, _ = network(inputs, state)
        location = network.mixtures(hidden[-1], inputs[-1]).location[..., 0].numpy()
    lags = np.stack(past[::-1][:HIDDEN], 1)
    np.testing.assert_allclose(hidden[-1].numpy(), lags, **TOLERANCE)
    np.testing.assert_allclose(location, lags @ w["weight"][0].T + w["bias"][0], **TOLERANCE)


def test_last_value_is_a_logistic_with_the_mean_change_as_mean_distance():
    """E |x - mu| of a logistic of scale s is 2 s ln 2; d asinh(z) / dz = 1 / sqrt(1 + z^2) brings it to asinh units."""
    network, inputs, _ = made("naive")
    u, log_change = inputs[-1, :, 0].numpy(), inputs[-1, :, 10].numpy()
    mixture = network.mixtures(network(inputs)[0][-1], inputs[-1])
    np.testing.assert_allclose(mixture.point().numpy(), np.repeat(np.sinh(u)[:, None], len(HORIZONS), 1), **TOLERANCE)
    scale = np.exp(mixture.log_scale[:, 0, 0].numpy())
    wanted = np.exp(log_change) / (2.0 * math.log(2.0) * np.cosh(u))  # cosh u = sqrt(1 + z^2)
    np.testing.assert_allclose(scale, np.clip(wanted, math.exp(-4.5), math.exp(2.5)), **TOLERANCE)


# --- backward ---------------------------------------------------------------------------------------------------------


def loss_of(network, inputs, state, targets):
    hidden, _ = network(inputs, state)
    return -network.mixtures(hidden, inputs).log_prob(targets).mean()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "tdnn", "conv", "seq2seq", "hmm", "ar"])
def test_gradients_are_finite_differences(cell):
    """Central differences along random directions, float64: (L(w + e d) - L(w - e d)) / 2 e = gradient . d."""
    network, inputs, state = made(cell)
    targets = torch.randn(STEPS, BATCH, len(HORIZONS), dtype=torch.float64)
    loss_of(network, inputs, state, targets).backward()
    parameters = list(network.parameters())
    for seed in range(4):
        draws = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=draws, dtype=torch.float64) for p in parameters]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
        sides = []
        with torch.no_grad():
            for step in (1e-6, -1e-6):
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
                sides.append(float(loss_of(network, inputs, state, targets)))
                for p, d in zip(parameters, direction, strict=True):
                    p.sub_(d, alpha=step)
        # the error of a central difference is of order e^2, that of float64 1e-16 / e: 1e-7 is well above both
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-7)


def bptt(w, inputs, h0, out, cut=None):
    """Backpropagation through time of a tanh RNN, written out, for the loss sum over t of out_t . h_t.

    delta_t = (out_t + U' delta_{t+1}) (1 - h_t^2);  dW = sum of delta_t x_t', dU = sum of delta_t h_{t-1}', db = sum of
    delta_t. With ``cut``, nothing flows from observation ``cut`` back to those before it.

    References
    ----------
    Werbos, "Backpropagation through time: what it does and how to do it" (1990); Williams and Peng (1990), truncation.
    """
    h = [h0]
    for x in inputs:
        h.append(rnn_step(w, 0, x, h[-1]))
    d_w, d_u, d_b = (np.zeros_like(w[name]) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"))
    later = np.zeros_like(h0)
    for t in reversed(range(len(inputs))):
        delta = (out[t] + later) * (1.0 - h[t + 1] ** 2)
        d_w += delta.T @ inputs[t]
        d_u += delta.T @ h[t]
        d_b += delta.sum(0)
        later = np.zeros_like(h0) if t == cut else delta @ w["weight_hh_l0"]
    return d_w, d_u, d_b, later


@pytest.mark.parametrize("cut", [None, 4])
def test_backward_is_backpropagation_through_time(cut):
    """The tanh RNN's gradients written out by hand, whole and truncated where the state is detached."""
    network, inputs, state = made("rnn")
    out = torch.randn(STEPS, BATCH, HIDDEN, dtype=torch.float64)
    begin = state.clone().requires_grad_()
    if cut is None:
        hidden, _ = network(inputs, begin)
        (hidden * out).sum().backward()
    else:
        first, carried = network(inputs[:cut], begin)
        second, _ = network(inputs[cut:], carried.detach())
        ((first * out[:cut]).sum() + (second * out[cut:]).sum()).backward()
    d_w, d_u, d_b, d_h = bptt(numbers(network, "rnn."), inputs.numpy(), state.numpy(), out.numpy(), cut)
    rnn = network.rnn
    for found, wanted in (
        (rnn.weight_ih_l0.grad, d_w), (rnn.weight_hh_l0.grad, d_u), (rnn.bias_ih_l0.grad, d_b),
        (rnn.bias_hh_l0.grad, d_b), (begin.grad, d_h),
    ):  # fmt: skip
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-10)
