"""Progress lines: what is counted, how fast, and how long it still takes."""

from types import SimpleNamespace

from maskdit.runtime import progress


def test_a_line_says_what_is_counted_and_how_slow_a_step_is(monkeypatch, capsys):
    clock = iter([0.0, 100.0, 200.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(progress.progress(range(2), "score", 2, unit="parts")) == [0, 1]
    assert capsys.readouterr().err == "score: 1/2 parts, 0.01/s, 01:40 left\nscore: 2/2 parts, 0.01/s, 00:00 left\n"


def test_steps_have_no_unit(monkeypatch, capsys):
    clock = iter([0.0, 0.5])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(progress.progress(range(1), "pretrain", 1, note=lambda: "loss 1")) == [0]
    assert capsys.readouterr().err == "pretrain: 1/1, 2.0/s, 00:00 left, loss 1\n"
