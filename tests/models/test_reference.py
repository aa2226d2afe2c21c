"""The fold against a plain reference: docs/score.md for one feature, an observation at a time, in NumPy and floats.

Written from the formulas and not from models/: when the two disagree, one of them has a formula wrong.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.config import FoldConfig, PredictorConfig
from models.pretrained import Weights
from models.step import Scorer

pytestmark = pytest.mark.slow

LENGTH = 900
CONFIGS = {
    # Three days and a half, and five weeks: the memory of the week counts in the second.
    interval_s: FoldConfig(("value",), interval_s, "single", alarm_every_s=72 * interval_s)
    for interval_s in (300.0, 3600.0)
}


def rate(window, t):
    return max(1.0 / window, 1.0 / (t + 1.0))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.clip(x, -500, 500)))


def clipped_deviation(x, mean, sigma, n):
    has_scale = n >= 5 and sigma > 3 * (1e-4 * abs(mean) + 1e-8)
    reach = 10 * sigma if n >= 19 else 100 * sigma if has_scale else math.inf
    return min(max(x - mean, -reach), reach)


class Network:
    """A GRU step and the head, from the state dict."""

    def __init__(self, weights):
        w = {name: t.double().numpy() for name, t in weights.network.items()}
        self.w_i, self.w_h = w["rnn.weight_ih_l0"], w["rnn.weight_hh_l0"]
        self.b_i, self.b_h = w["rnn.bias_ih_l0"], w["rnn.bias_hh_l0"]
        self.head_w, self.head_b = w["head.weight"], w["head.bias"]

    def step(self, inputs, h):
        width = h.size
        i, r = self.w_i @ inputs + self.b_i, self.w_h @ h + self.b_h
        reset, update = sigmoid(i[:width] + r[:width]), sigmoid(i[width : 2 * width] + r[width : 2 * width])
        candidate = np.tanh(i[2 * width :] + reset * r[2 * width :])
        return (1.0 - update) * candidate + update * h

    def head(self, h, inputs):
        """Horizon -> (weights, locations, log scales)."""
        raw = (self.head_w @ np.concatenate((h, inputs)) + self.head_b).reshape(6, 3, 3)
        out = {}
        for k, (logits, location, log_scale) in zip((1, 2, 4, 8, 16, 32), raw, strict=True):
            e = np.exp(logits - logits.max())
            out[k] = e / e.sum(), location, np.clip(log_scale, -4.5, 2.5)
        return out


class BehaviourTail:
    """Clusters of one kind of behaviour above its 95 % quantile."""

    def __init__(self, pooled):
        self.pooled = pooled
        self.recent = self.D = 0.0
        self.q, self.rate, self.beta = pooled.level, pooled.rate, pooled.beta
        self.ended, self.cluster, self.below = 0, [], 0

    def nats(self, A, w):
        q = w * self.pooled.level + (1 - w) * self.q
        base = -math.log(self.rate)
        return base + math.log(A / q) / self.beta if q < A else min(base, math.log(100)) * A / q

    def learn(self, A, n):
        exceeds = self.q < A
        begins = exceeds and not self.cluster
        if exceeds or self.cluster:
            self.cluster.append(max(math.log(A / self.q), 0.0))
            self.below = 0 if exceeds else self.below + 1
        if self.below == 10:
            peak = min(max(self.cluster), 4 * self.beta)
            self.beta += max(0.02, 1 / (self.ended + 11)) * (peak - self.beta)
            self.ended, self.cluster, self.below = self.ended + 1, [], 0
        self.rate += max(1 / 20_000, 1 / (n + 10 / self.pooled.rate)) * (begins - self.rate)
        self.rate = max(self.rate, 1 / 20_000)
        if self.D == 0:
            self.D = max(A, 0.01)
        step = max(1 / 20_000, 1 / (n + 1)) * max(0.1, 1 / (1 + len(self.cluster) / 50))
        q, D = self.q, self.D
        self.q = max(q + step * D * (exceeds - 0.05) / 0.05, 0.1)
        self.q *= 1 + exceeds * (len(self.cluster) > 1000) / 1000
        self.D = max(D + step * (min(abs(A - q), 10 * D) - D), 0.01)


class Reference:
    """All that one feature's row remembers, by plain names."""

    def __init__(self, weights, config):
        self.net, self.config, self.interval_s = Network(weights), config, config.interval_s
        self.mu0, self.P0 = weights.mu0.double().numpy(), weights.P0.double().numpy()
        self.pool = weights.pooled
        self.h = np.zeros(weights.predictor.hidden)
        self.n = 0.0
        self.m = self.v = self.fast_m = self.fast_v = self.change = self.last = 0.0
        self.bin_mean, self.bin_n = np.zeros(48), np.zeros(48)
        self.week, self.day_error, self.week_error = np.zeros(84), 0.0, 0.0
        self.l20 = self.l300 = self.l1500 = self.v1500 = self.vsr = self.sr5 = 0.0
        self.ranges = {"x": None, "l20": None}
        self.maxima = {}
        self.P = self.P_max = self.gate_scale = 0.0
        self.usual = {4: 0.0, 8: 0.0}
        self.seen_S = self.expected_S = 0.0
        self.beta_S, self.k_S = self.pool.level.beta, 10.0
        pools = self.pool.short_activity, self.pool.activity, self.pool.long_activity
        self.activities = {
            key: BehaviourTail(pool) for key, pool in zip(((5, 4), (20, 8), (60, 4)), pools, strict=True)
        }
        self.l50 = self.l5000 = self.v5000 = self.move = self.usual_move = 0.0
        self.bearings = {"displacement": BehaviourTail(self.pool.displacement)}
        self.bearings["stillness"] = BehaviourTail(self.pool.stillness)
        self.ring = [0.0] * 10
        self.ahead_4, self.ahead_8 = [None] * 4, [None] * 8
        self.mixture = None
        self.fast = {k: [np.zeros(self.mu0.size), 0.0, 1.0, 0] for k in (4, 8)}
        self.keys, self.phase = [], 0
        self.d, self.is_open, self.quiet_n, self.quiet_s, self.peak, self.reported, self.severity = (
            0.0, False, 0, 0.0, 0.0, 0.0, 0
        )  # fmt: skip

    def bin(self, time_ms):
        return time_ms % 86_400_000 // 1_800_000

    def week_bin(self, time_ms):
        return time_ms % (7 * 86_400_000) // 7_200_000

    def expected_at(self, time_ms):
        """What the time of day, and of the week where that is trusted, leads to expect; None where unknown."""
        b = self.bin(time_ms)
        if self.bin_n[b] < 1:
            return None
        return self.bin_mean[b] + self.trusts_week * self.week[self.week_bin(time_ms)]

    @property
    def trusts_week(self):
        return self.week_error < 0.9 * self.day_error

    def maximum_record(self, name, e, f, gathers, tau=math.inf):
        """Ln of e against its decaying maximum, which then gathers e."""
        before = self.maxima.get(name)
        r = 0.0 if before is None else min(max(0.0, math.log((e + f) / (before + f))), 5.0)
        if gathers:
            self.maxima[name] = e if before is None else max(before * math.exp(-1.0 / tau), e)
        return r

    def range_record(self, name, x, f, gathers):
        span = self.ranges[name]
        r = 0.0
        if span is not None:
            low, high = span
            r = math.log(1.0 + 2.0 * max(x - high, low - x, 0.0) / (high - low + f))
        if gathers:
            self.ranges[name] = (x, x) if span is None else (min(span[0], x), max(span[1], x))
        return r

    def observe(self, raw, time_ms, last_ms):
        """Score one observation; returns what :class:`StepScores` says of it, as a dict."""
        elapsed = 0.0 if last_ms < 0 else (time_ms - last_ms) / 1000.0
        is_gap = elapsed / self.interval_s > 1.5
        if is_gap:
            self.ahead_4, self.ahead_8, self.ring, self.keys = [None] * 4, [None] * 8, [0.0] * 10, []
            if self.n > 100:
                self.n = max(100.0, self.n / (1.0 + elapsed / self.interval_s / 500.0))
        valid = not math.isnan(raw)
        f = 1e-4 * abs(self.m) + 1e-8
        sigma = math.sqrt(self.v) + f
        expected = self.expected_at(time_ms)
        known = expected is not None
        expected = expected if known else self.m
        x = raw if valid else expected
        dx = x - self.last if valid and self.n > 0 and not is_gap else 0.0
        sr = x - expected
        n = self.n
        x4, x8 = self.ahead_4.pop(0), self.ahead_8.pop(0)
        out = {"score": math.nan, "verdict": 3, "event": 0, "S": math.nan, "A": math.nan}
        out |= {"displacement": math.nan, "stillness": math.nan}
        S_now = 0.0
        if valid:
            S_now, r_S, A, updates = self.evidence(x, sr, f, sigma, x4, x8)
            B = self.bearing(x, dx, f)
            nats_S, nats_AB = self.nats(S_now, r_S, A, B)
            nats = 0.0 if n < 100 else max(max(nats_S, nats_AB) - math.log(2), 0.0)
            score = round(nats / math.log(10.0), 3)
            out |= {
                "score": score,
                "S": r_S,
                "A": max(A.values(), default=math.nan),
                **B,
                **self.decide(score, elapsed),
            }
            self.update_evidence(updates, r_S, A)
            self.update_bearing(x, dx, f, B)
        else:
            self.quiet_s += elapsed
        self.ring = [*self.ring[1:], S_now]
        self.learn(x, valid)
        if valid:
            self.normalise(x, dx, sigma)
            self.learn_time(x, time_ms)
        self.forecast(x, dx, sr, known, time_ms, valid)
        return out

    def evidence(self, x, sr, f, sigma, x4, x8):
        n = self.n
        gathers, counts = n >= 19, n >= 20
        if self.mixture is not None:
            u = math.asinh((x - self.m) / sigma)
            w, loc, log_scale = self.mixture
            z = (u - loc) / np.exp(log_scale)
            least = min((w * sigmoid(z)).sum(), (w * sigmoid(-z)).sum())
            surprise = min(max(-math.log(max(2 * least, 1e-300)), 1e-3), 15.0)
            self.P += max(1 / 5, 1 / max(n, 1)) * (surprise - self.P)
        self.l20 += rate(20, n) * (x - self.l20)
        self.sr5 += rate(5, n) * (sr - self.sr5)
        skill = 1.0 - self.vsr / self.v1500 if self.v1500 > f * f else 0.0
        records = [self.range_record("x", x, f, gathers), self.range_record("l20", self.l20, f, gathers)]
        for name, e in (("300", x - self.l300), ("sr", sr), ("sr5", self.sr5)):
            up = self.maximum_record(name + "+", max(e, 0.0), f, gathers)
            down = self.maximum_record(name + "-", max(-e, 0.0), f, gathers)
            records += [up, down] if name == "300" or skill > 0.4 else []
        records.append(0.4 * self.maximum_record("P", self.P, 0.0, gathers, 16000.0))
        record = max(records) if counts else 0.0
        gate = 1.0 if x8 is None else abs(x - x8) / (self.gate_scale + f)
        S = record * min(1.0, gate / 6.0)
        reported = S if max(self.ring) < S else 0.0
        A = {}
        for (window, k), tail in self.activities.items():
            ahead = {4: x4, 8: x8}[k]
            if ahead is None:
                continue
            usual = self.usual[k] + f * f
            bound = 25 * (tail.recent + usual) if window > 5 and n >= 108 else math.inf
            tail.recent += max(1 / window, 1 / max(n - k + 1, 1)) * (min((x - ahead) ** 2, bound) - tail.recent)
            A[window, k] = math.sqrt(tail.recent / usual)
        return S, reported, A, (x, sr, f, x4, x8, counts)

    def bearing(self, x, dx, f):
        """Where the feature is and how much it moves, against what is usual; from the warm-up on."""
        self.l50 += rate(50, self.n) * (x - self.l50)
        self.move += rate(30, self.n) * (math.sqrt(abs(dx)) - self.move)
        if self.n < 100:
            return {}
        least = math.sqrt(f)
        still = (self.usual_move + least) / (self.move + least + 0.2 * self.usual_move)
        return {
            "displacement": abs(self.l50 - self.l5000) / (math.sqrt(self.v5000) + f),
            "stillness": max(still - 1, 0.0),
        }

    def update_bearing(self, x, dx, f, B):
        a, d = rate(5000, self.n), clipped_deviation(x, self.l5000, math.sqrt(self.v5000) + f, self.n)
        self.l5000, self.v5000 = self.l5000 + a * d, (1 - a) * (self.v5000 + a * d * d)
        self.usual_move += a * (math.sqrt(abs(dx)) - self.usual_move)
        for kind, value in B.items():
            self.bearings[kind].learn(value, self.n)

    def record_rate(self, n):
        return self.pool.level.rate / min(max(n, 100), 5000)

    def nats(self, S, reported, A, B):
        n = self.n
        w = 1000 / (1000 + n) if n < 1000 else 0.0
        lam = min(self.record_rate(n) * (self.seen_S + 3) / (self.expected_S + 3), 1.0)
        beta = w * self.pool.level.beta + (1 - w) * self.beta_S
        nats_S = -math.log(lam) + math.log(reported / 0.01) / beta if reported > 0.01 else 0.0
        of_A = [self.activities[key].nats(value, w) for key, value in A.items()]
        of_B = [max(self.bearings[kind].nats(value, w) - math.log(2), 0.0) for kind, value in B.items()]
        return nats_S, max(of_A + of_B, default=0.0)

    def decide(self, score, elapsed):
        per_alarm = self.config.alarm_every_s / self.interval_s
        threshold = round((math.log(per_alarm) + self.d) / math.log(10.0), 3)
        is_warm = self.n >= 100
        alarm = is_warm and score > threshold
        holds = alarm or (self.is_open and score > max(threshold - 1 / math.log(10.0), threshold / 2))
        self.quiet_n, self.quiet_s = (0, 0.0) if holds else (self.quiet_n + 1, self.quiet_s + elapsed)
        event, d, was_open = 0, self.d, self.is_open
        if alarm and not self.is_open:
            event, self.is_open = 1, True
            self.peak, self.reported, self.severity = score, score, 2 if score >= threshold + 2 else 1
        elif alarm:
            severity = 2 if score >= threshold + 2 else 1
            if severity > self.severity or score >= self.reported + 1:
                event, self.reported, self.severity = 2, score, max(severity, self.severity)
        elif self.is_open and self.quiet_n >= 10 and self.quiet_s >= 1800:
            event, self.is_open = 3, False
        if is_warm and not was_open:
            self.d = min(max(self.d + (event == 1) - 1.0 / per_alarm, -1.0), 1.0)
        return {"verdict": (1 if alarm else 0) if is_warm else 2, "event": event, "d": d, "threshold": threshold}

    def update_evidence(self, seen, reported, A):
        x, sr, f, x4, x8, counts = seen
        n = self.n
        error_1500 = x - self.l1500
        self.vsr += rate(1500, n) * (sr * sr - self.vsr)
        self.v1500 += rate(1500, n) * (error_1500**2 - self.v1500)
        self.l1500 += rate(1500, n) * error_1500
        self.l300 += rate(300, n) * (x - self.l300)
        if x8 is not None:
            self.gate_scale += max(1 / 500, 1 / max(n - 7, 1)) * (abs(x - x8) - self.gate_scale)
        for k, ahead in ((4, x4), (8, x8)):
            if ahead is None:
                continue
            e, t, usual = (x - ahead) ** 2, max(n - k, 0), self.usual[k]
            has_scale = t >= 5 and usual > 4 * f * f
            cap = 9 if n >= 19 else 100 if has_scale else math.inf
            t -= 0.75 * min(t, 8)
            self.usual[k] += (1 / (t + 1) if t < 100 else 1 / 2000) * (min(e, cap * (usual + f * f)) - usual)
        if not counts:
            return
        self.seen_S += (reported > 0.01) - self.seen_S / 5000
        self.expected_S += self.record_rate(n) - self.expected_S / 5000
        if reported > 0.01:
            target = min(math.log(reported / 0.01), 10 * self.beta_S)
            self.beta_S = max(self.beta_S + max(0.01, 1 / (self.k_S + 1)) * (target - self.beta_S), 0.02)
            self.k_S += 1
        for key, value in A.items():
            self.activities[key].learn(value, n)

    def learn(self, x, valid):
        """Fast weights: the step towards x from the keys of t-4 and t-8."""
        self.is_key = self.phase == 0 and valid
        if self.phase > 0:
            self.phase -= 1
            return
        if not valid:
            self.keys = []
            return
        self.phase = 3
        for k, key in zip((4, 8), self.keys, strict=False):
            phi, m, sigma, B = key[0], key[1], key[2], key[3][k]
            v, c, s2, updates = self.fast[k]
            e = min(max((x - m) / sigma, -50.0), 50.0) - B - v @ phi - c
            if updates >= 60:
                e = min(max(e, -4 * math.sqrt(s2)), 4 * math.sqrt(s2))
            s2 = max(s2 + (0.1 if updates < 20 else 1 / 200) * (min(e * e, 9 * s2) - s2), 1e-6)
            direction = self.P0 @ phi
            g = 0.1 * e / (2 + phi @ direction)
            self.fast[k] = [v + g * direction, c + g, s2, updates + 1]

    def normalise(self, x, dx, sigma):
        n = self.n
        a, d = rate(500, n), clipped_deviation(x, self.m, sigma, n)
        self.m, self.v = self.m + a * d, (1 - a) * (self.v + a * d * d)
        a, d = rate(10, n), x - self.fast_m
        self.fast_m, self.fast_v = self.fast_m + a * d, (1 - a) * (self.fast_v + a * d * d)
        self.change += max(1 / 500, 1 / max(n, 1)) * (abs(dx) - self.change)
        self.last = x
        self.n += 1

    def learn_time(self, x, time_ms):
        b, w = self.bin(time_ms), self.week_bin(time_ms)
        if self.bin_n[b] >= 1:
            reach = 10 * (math.sqrt(self.v) + 1e-4 * abs(self.m) + 1e-8)
            residual = min(max(x - self.bin_mean[b], -reach), reach)
            step = residual - self.week[w]
            if self.trusts_week:
                step = min(max(step, -4 * self.week_error), 4 * self.week_error)
            if w != self.week_bin(time_ms - int(self.interval_s * 1000)):
                self.day_error += (abs(residual) - self.day_error) / 84
                self.week_error += (abs(residual - self.week[w]) - self.week_error) / 84
            self.week[w] += (1 - 0.5 ** (1 / max(1.0, 7200 / self.interval_s))) * step
        slowest = 1 / (4 * max(1.0, 1800 / self.interval_s))
        self.bin_mean[b] += max(1 / (self.bin_n[b] + 1), slowest) * (x - self.bin_mean[b])
        self.bin_n[b] += 1

    def forecast(self, x, dx, sr, known, time_ms, valid):
        f = 1e-4 * abs(self.m) + 1e-8
        sigma = math.sqrt(self.v) + f
        z = (x - self.m) / sigma
        change = self.change + 1e-3 * sigma
        inputs = [math.asinh(z), min(max(z, -4.0), 4.0), math.asinh(dx / change)]
        for k in (1, 4, 16):
            ahead = self.expected_at(time_ms + int(k * self.interval_s * 1000))
            inputs.append(0.0 if ahead is None else math.asinh((ahead - self.m) / sigma))
        inputs += [math.asinh(sr / sigma), float(known), math.asinh((self.fast_m - self.m) / sigma)]
        inputs += [math.log((math.sqrt(self.fast_v) + 1e-3 * sigma) / sigma), math.log(change / sigma)]
        inputs = np.array([*inputs, min(self.n, 2000.0) / 1000.0])
        self.h = self.net.step(inputs, self.h)
        mixtures = self.net.head(self.h, inputs)
        B = {k: min(max(math.sinh((w * loc).sum()), -50), 50) for k, (w, loc, _) in mixtures.items()}
        self.mixture = mixtures[1]
        phi = np.concatenate((self.h, inputs)) - self.mu0
        for k, ahead in ((4, self.ahead_4), (8, self.ahead_8)):
            v, c, _, _ = self.fast[k]
            ahead.append(self.m + sigma * (B[k] + v @ phi + c))
        if self.is_key:
            self.keys = [(phi, self.m, sigma, B), *self.keys][:2]


def series(length, interval_s, seed):
    """A daily shape, less on two days a week, with noise, drop-outs, a shift, a spike, a stuck sensor, two gaps."""
    rng = np.random.default_rng(seed)
    steps = np.ones(length)
    steps[[260, 430]] = 7, 300
    times = 1_700_000_000_000 + np.cumsum(steps).astype(np.int64) * int(interval_s * 1000)
    x = 20 + 5 * np.sin(times / 86_400_000 * 2 * np.pi) + rng.normal(0, 0.5, length)
    x -= 8 * (times // 86_400_000 % 7 >= 5)
    x[350:380] += 6
    x[520:524] += 40
    x[640:720] = x[640]
    x[rng.random(length) < 0.05] = np.nan
    x[300:340:2] = np.nan
    x[0] = np.nan
    return x.astype(np.float32).astype(np.float64), times


@pytest.fixture(scope="module")
def weights():
    return Weights.random(PredictorConfig(hidden=8), seed=3)


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def expected(weights, config):
    x, times = series(LENGTH, config.interval_s, 5)
    reference = Reference(weights, config)
    before = [-1, *times[:-1]]
    return [
        {**reference.observe(float(v), int(t), int(b)), "trusts_week": reference.trusts_week}
        for v, t, b in zip(x, times, before, strict=True)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_fold_equals_the_plain_reference(weights, config, expected, dtype, tolerance):
    """Every formula of docs/score.md for one feature is written twice, independently; a slip in either shows here.

    In float64 only the order of sums differs. In float32 the adapted forecasts carry rounding through hundreds of
    updates, hence 2e-3 of evidence and score.
    """
    x, times = series(LENGTH, config.interval_s, 5)
    scorer = Scorer(weights, config, dtype=dtype)
    scores = scorer.score(
        scorer.rows(1), torch.tensor([0]), torch.tensor(x, dtype=dtype).view(-1, 1, 1),
        torch.tensor(times).view(-1, 1), torch.tensor([-1]), detail=True,
    )  # fmt: skip
    names = "score", "S", "A", "displacement", "stillness", "threshold"
    want = {key: np.array([row.get(key, math.nan) for row in expected]) for key in names}
    np.testing.assert_allclose(scores.trace["level"].flatten().numpy(), want["S"], atol=tolerance)
    np.testing.assert_allclose(scores.trace["activity"].flatten().numpy(), want["A"], rtol=tolerance, atol=tolerance)
    for kind in ("displacement", "stillness"):
        np.testing.assert_allclose(scores.trace[kind].flatten().numpy(), want[kind], rtol=tolerance, atol=1e-5)
    np.testing.assert_allclose(scores.score.flatten().numpy(), want["score"], atol=1e-3 + tolerance)
    valid = ~np.isnan(x)
    np.testing.assert_allclose(scores.threshold.flatten().numpy()[valid], want["threshold"][valid], atol=1.1e-3)
    if dtype is torch.float64:
        assert scores.verdict.flatten().tolist() == [row["verdict"] for row in expected]
        assert scores.event.flatten().tolist() == [row["event"] for row in expected]


def test_reference_series_exercises_the_chain(expected, config):
    """The comparison means something only if alarms open and resolve, and evidence of all kinds occurs, in it."""
    events = [row["event"] for row in expected]
    assert 1 in events
    assert 3 in events
    assert sum(row["S"] > 0.01 for row in expected) > 5
    assert sum(row["A"] > 1.5 for row in expected) > 5
    assert sum(row["displacement"] > 0.5 for row in expected) > 5
    assert sum(row["stillness"] > 1 for row in expected) > 5
    weeks = sum(row["trusts_week"] for row in expected)
    assert weeks > 200 if config.interval_s == 3600 else weeks == 0
