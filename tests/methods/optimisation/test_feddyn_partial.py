"""FedDyn with two of five clients in a round: h adds their changes over the whole population."""

import numpy as np
import pytest

from tests.methods.quadratics import by_size, play, quadratics

OPTIMA, CURVATURES, SIZES = [1.0, -2.0, 0.5, 3.0, -1.0], [1.0, 0.5, 2.0, 1.5, 0.7], [3, 1, 4, 2, 5]
ALPHA, LR, STEPS = 0.3, 0.1, 3


@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_h_is_a_mean_over_the_population(vectorize):
    """A mean over the cohort would be 5/2 times as large; all clients weigh the same, whatever their sizes."""
    task = quadratics(OPTIMA, CURVATURES, start=0.2, sizes=SIZES)
    options = {"alpha": ALPHA, "epochs": STEPS, "lr": LR}
    w, h, duals = 0.2, 0.0, np.zeros(5)
    for found, state, fed in play(task, "feddyn", 8, cohort=2, options=options, vectorize=vectorize, chunk=2):
        cohort, changes = sorted(fed.last.arrived), []
        for u in cohort:
            at = w
            for _ in range(STEPS):
                at -= LR * (CURVATURES[u] * (at - OPTIMA[u]) - duals[u] + ALPHA * (at - w))
            duals[u] -= ALPHA * (at - w)
            changes.append(at - w)
        h -= ALPHA * sum(changes) / 5
        w = w + np.mean(changes) - h / ALPHA
        assert found == pytest.approx(w, rel=2e-5, abs=2e-6)
        assert float(state.h.vector[0]) == pytest.approx(h, rel=2e-5, abs=2e-6)
        assert len(cohort) == 2


def test_clients_without_samples_are_in_the_population_and_not_in_the_mean():
    """Two of six have none: the mean of the models is over the others, and h over all."""
    task, sizes = quadratics(OPTIMA[:4], CURVATURES[:4], start=0.2, sizes=SIZES[:4]), [*SIZES[:2], 0, *SIZES[2:4], 0]
    w, h, duals = 0.2, 0.0, np.zeros(4)
    options = {"alpha": ALPHA, "epochs": STEPS, "lr": LR}
    for found, state, _ in play(task, "feddyn", 4, options=options, split=by_size(sizes)):
        changes = []
        for u in range(4):
            at = w
            for _ in range(STEPS):
                at -= LR * (CURVATURES[u] * (at - OPTIMA[u]) - duals[u] + ALPHA * (at - w))
            duals[u] -= ALPHA * (at - w)
            changes.append(at - w)
        h -= ALPHA * sum(changes) / 6
        w = w + np.mean(changes) - h / ALPHA
        assert found == pytest.approx(w, rel=2e-5, abs=2e-6)
        assert float(state.h.vector[0]) == pytest.approx(h, rel=2e-5, abs=2e-6)
