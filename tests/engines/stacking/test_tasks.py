import torch

from paceline.engines.stacking import Meeting, RequestFailed


class Ask:
    def __init__(self, value, alone=False):
        self.value, self.alone = value, alone

    def run(self):
        return -self.value


def test_tasks_meet_at_each_request_and_go_on_with_their_own_answers():
    rounds = []

    def serve(requests):
        rounds.append([r.value for r in requests])
        return [10 * r.value for r in requests]

    meeting = Meeting(serve)

    def task(me, times):
        def go():
            return [meeting.ask(Ask(me + step)) for step in range(times)]

        return go

    assert meeting.run([task(1, 1), task(2, 3), task(3, 0)]) == [[10], [20, 30, 40], []]
    assert rounds == [[1, 2], [3], [4]]


def test_a_failed_request_is_raised_where_it_was_asked():
    meeting = Meeting(lambda requests: [RequestFailed(ValueError("no")) if r.value else 7 for r in requests])

    def task(value):
        def go():
            try:
                return meeting.ask(Ask(value))
            except ValueError as error:
                return str(error)

        return go

    assert meeting.run([task(1), task(0)]) == ["no", 7]


def test_one_task_turning_gradients_off_leaves_the_others_alone():
    seen = []
    meeting = Meeting(lambda requests: [seen.append(("serve", torch.is_grad_enabled())) for _ in requests])

    def off():
        with torch.no_grad():
            meeting.ask(Ask(1))
            seen.append(("off", torch.is_grad_enabled()))

    def on():
        seen.append(("on", torch.is_grad_enabled()))
        meeting.ask(Ask(2))
        seen.append(("on", torch.is_grad_enabled()))

    meeting.run([off, on])
    assert seen == [("on", True), ("serve", True), ("serve", True), ("off", False), ("on", True)]
    assert torch.is_grad_enabled()


def test_what_must_run_by_itself_is_run_at_once():
    meeting = Meeting(lambda requests: [r.value for r in requests])
    assert meeting.run([lambda: meeting.ask(Ask(5, alone=True)), lambda: meeting.ask(Ask(6))]) == [-5, 6]
    assert meeting.ask(Ask(3)) == -3
