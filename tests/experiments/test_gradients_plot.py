"""The figure of the study of gradients: trainings that logged once are points, zeros are said, and no panel is empty."""

from matplotlib.figure import Figure

from experiments import gradients

PATHS = ("params/a/kernel", "params/b/kernel")


def entry(case, logged):
    norms = [0.0 if case.ste == "none" else 0.5 / case_number for case_number in range(1, logged + 1)]
    ends = dict.fromkeys(PATHS, norms[0])
    return {"accuracy": 0.9, "first": ends, "last": ends, "steps": list(range(logged)), "norms": dict.fromkeys(PATHS, norms)}


def test_no_panel_is_empty():
    for logged in (1, 5):
        figure = Figure()
        gradients.draw(figure, {case.name: entry(case, logged) for case in gradients.CASES})
        assert len(figure.axes) == len(PATHS) * len(gradients.BITS)
        for axes in figure.axes:
            assert [len(line.get_xdata()) for line in axes.lines] == [logged] * 3
            assert all(line.get_marker() == ("o" if logged == 1 else "") for line in axes.lines)
            assert [text.get_text() for text in axes.texts] == ["none: exactly 0"]
