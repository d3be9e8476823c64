"""R11: every wrong command line is answered by one clear report, at once, and nothing is written or started."""

import os
import random
import re
import resource
import time
from collections import defaultdict

import pytest

from runner.config.targets import CONF
from tests.campaign.bad_config import MAKERS, Case, Space, make_cases
from tests.campaign.config_judge import ACCEPTED, Answer, ask, ask_truly

SEED = int(os.environ.get("HOOKLINE_CAMPAIGN_SEED", time.time_ns() % 10**6))
REPRODUCE = f"HOOKLINE_CAMPAIGN_SEED={SEED}"
REFUSED_BY_HYDRA = re.compile("typo of a (key|group|choice)|unknown key|bad choice in a sweep")
NOISE = re.compile(r"Traceback|omegaconf|full_key|object_type|<class|0x[0-9a-f]{6}|Error:", re.IGNORECASE)
LONGEST_LINE = 500


@pytest.fixture(scope="module")
def space():
    return Space(CONF, few=6, seed=SEED)


def mistakes(answer):
    *lines, last = answer.err.splitlines() or [""]
    return lines if re.fullmatch(r"(one mistake|\d+ mistakes) in the configuration, nothing was started", last) else []


def faults(case, answer):
    """What is wrong with an answer: nothing, if it is the one clear report that it should be."""
    lines = mistakes(answer)
    first = lines[0] if lines else ""
    checks = {
        f"exit code {answer.code}": answer.code != 2,
        f"did {answer.touched}": bool(answer.touched),
        "printed to standard output": bool(answer.out),
        "no report": not lines,
        f"the first line names none of {case.names}": not any(name in first for name in case.names),
        f"the first line does not say {case.origin}": case.origin not in first,
        "nothing after the colon": not re.search(r"\): \S+ \S+", first),
        "words for programmers": bool(NOISE.search(answer.err)),
        "too long a line": max(map(len, lines), default=0) > LONGEST_LINE + max(map(len, case.argv), default=0),
        f"{len(lines)} lines": len(lines) > case.mistakes,
    }
    return [fault for fault, is_so in checks.items() if is_so]


def is_answered_right(case, answer):
    """Whether the report says what was meant."""
    said = re.findall(r"did you mean \+?([^?]+)\?|([^\s;]+) has it|comes with (\S+)", " ".join(mistakes(answer)))
    words = {word for found in said for part in found for word in (part, part.rpartition("=")[2].strip("[]"))}
    words |= {choice for word in words for choice in word.split(",")}
    return any(answer in words for answer in case.answers)


class Campaign:
    """Cases and their answers."""

    def __init__(self, cases):
        self.cases = list(cases)
        self.pairs = list(zip(self.cases, ask(case.asked() for case in self.cases), strict=True))
        self.broken = [(case, found, answer) for case, answer in self.pairs if (found := faults(case, answer))]

    def typos(self):
        return [(case, answer) for case, answer in self.pairs if case.answers and case.edits == 1]

    def table(self):
        """Cases, reported well, exit 2, files written, right suggestions for one-edit typos, slowest CPU s, by kind."""
        rows = defaultdict(list)
        for case, answer in self.pairs:
            rows[case.kind].append((case, answer))
        head = f"{'kind':<32}{'cases':>7}{'reported':>10}{'exit 2':>8}{'written':>9}{'suggested':>11}{'slowest s':>11}"
        return "\n".join([head, *(self._row(kind, rows[kind]) for kind in rows), self._row("all", self.pairs)])

    def _row(self, kind, pairs):
        typos = [is_answered_right(case, answer) for case, answer in pairs if case.answers and case.edits == 1]
        suggested = f"{sum(typos) / len(typos):.1%}" if typos else "-"
        reported = sum(not faults(case, answer) for case, answer in pairs)
        exits, written = sum(answer.code == 2 for _, answer in pairs), sum(bool(answer.touched) for _, answer in pairs)
        slowest = max(answer.cpu_seconds for _, answer in pairs)
        return f"{kind:<32}{len(pairs):>7}{reported:>10}{exits:>8}{written:>9}{suggested:>11}{slowest:>11.2f}"

    def assert_all_are_clear(self):
        print(f"\n{REPRODUCE}\n{self.table()}")
        listed = "\n".join(f"{case.kind}: {case.argv} {case.files}\n   {found}\n   {answer.err[-300:]}"
                           for case, found, answer in self.broken[:20])  # fmt: skip
        assert not self.broken, f"{REPRODUCE}: {len(self.broken)} of {len(self.cases)}\n{listed}"
        wrong = [(case.argv, case.answers, mistakes(answer)) for case, answer in self.typos()
                 if not is_answered_right(case, answer)]  # fmt: skip
        assert len(wrong) <= 0.05 * len(self.typos()), f"{REPRODUCE}: {wrong[:20]}"


def answer_truly(case, folder):
    """The answer that a user gets, which must be the same, and its seconds of the clock and of the CPU."""
    folder.mkdir(parents=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = ask_truly(case.asked(), folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert faults(case, answer) == [], (REPRODUCE, case, answer)
    return answer.seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def assert_quick(seconds):
    """Within a second, as long as the cores are not shared with more than they can do."""
    clock, cpu = (sorted(column) for column in zip(*seconds, strict=True))
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"{len(clock)} typos as processes: median {clock[len(clock) // 2]:.2f} s, slowest {clock[-1]:.2f} s, "
          f"of the CPU {cpu[-1]:.2f} s; load {load:.1f} on {cores} cores")  # fmt: skip
    assert cpu[-1] < 1.2, REPRODUCE
    assert clock[-1] < 1 or load > cores, REPRODUCE


def is_checked_without_gymnasium(case):
    return not any(text.startswith("env.id=") for text in case.argv)


def test_what_is_right_is_not_refused_and_the_judge_sees_that_it_goes_on(space):
    right = [
        ["seed=3", "log_every.updates=2"],
        ["source.gamma=${loss.gamma}", "hooks=null", "hydra.run.dir=here"],
        ["-m", "network.hidden=[64,64],[8]", "hooks=[default],[default,early_stopping]", "+env.kwargs={a:1},{a:2}"],
    ]
    answers = list(ask({"argv": argv, "files": {}} for argv in right))
    assert [answer.code for answer in answers] == [ACCEPTED] * len(right)
    assert all(answer.touched[-1] == "import torch" for answer in answers)
    assert faults(Case((), ("seed",)), answers[0])


def test_a_bad_report_is_noticed():
    case = Case(("seed=x",), ("seed",))
    good = "seed (command line): expected a number\none mistake in the configuration, nothing was started\n"
    assert faults(case, Answer(2, "", good, 0, 0, [])) == []
    for code, out, err, touched in [
        (1, "", good, []), (2, "x", good, []), (2, "", good, ["outputs"]), (2, "", good.replace("seed", "sede"), []),
        (2, "", good.replace("(command line)", ""), []), (2, "", "Traceback\n" + good, []), (2, "", "", []),
        (2, "", good.replace("expected a number", ""), []), (2, "", "a (b): c d\n" + good, []),
    ]:  # fmt: skip
        assert faults(case, Answer(code, out, err, 0, 0, touched)), (code, out, err, touched)


def test_names_that_are_called_wrong_are_refused_by_hydra_too(space):
    made = [case for case in make_cases(space, 100, SEED) if REFUSED_BY_HYDRA.match(case.kind)]
    cases = [case for case in made if not any(text.startswith("+") for text in case.argv)]  # Hydra adds anything
    for case in random.Random(SEED).sample(cases, 6):
        texts = [text for text in case.argv if text != "-m"]
        is_optional = texts[-1].startswith("tuned=")  # Hydra leaves it out without a word
        assert is_optional or space.compose(*texts) is None, (REPRODUCE, case)


def test_over_a_hundred_wrong_command_lines_are_answered_clearly(space, tmp_path):
    campaign = Campaign(make_cases(space, 110, SEED))
    campaign.assert_all_are_clear()
    assert len(campaign.cases) >= 120
    assert {case.kind for case in campaign.cases} == set(MAKERS)
    typos = [case for case, _ in campaign.typos() if is_checked_without_gymnasium(case)]
    for number, case in enumerate(random.Random(SEED).sample(typos, 2)):
        answer_truly(case, tmp_path / str(number))


@pytest.mark.slow
def test_two_thousand_wrong_command_lines_are_answered_clearly(tmp_path):
    campaign = Campaign(make_cases(Space(CONF), 2060, SEED))
    campaign.assert_all_are_clear()
    assert len(campaign.cases) >= 2000
    rng = random.Random(SEED)
    typos = rng.sample([case for case, _ in campaign.typos() if is_checked_without_gymnasium(case)], 20)
    others = rng.sample([case for case in campaign.cases if not case.edits], 20)
    seconds = [answer_truly(case, tmp_path / str(number)) for number, case in enumerate([*typos, *others])]
    assert_quick(seconds[:20])
