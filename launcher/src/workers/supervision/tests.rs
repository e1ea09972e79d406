//! Decisions by table, without clocks or processes; and under thousands of made-up schedules ([`simulation`]).

mod simulation;

use super::*;
use crate::workers::cause::first_cause;

const KILLED: Outcome = Outcome::Killed(Signal::SIGKILL);
const LIMITS: Limits = Limits {
    heartbeat: Duration::from_secs(10),
    progress: Some(Duration::from_secs(60)),
    pause: Duration::from_secs(20),
    recovery: Duration::from_secs(3),
};

/// Feeds inputs at milliseconds; returns the state and all actions.
fn feed(world_size: usize, inputs: &[(u64, Input)]) -> (State, Vec<Action>) {
    let mut state = State::new(world_size, LIMITS);
    let mut actions = Vec::new();
    for (ms, input) in inputs {
        let (next, decision) = step(state, Duration::from_millis(*ms), *input);
        state = next;
        actions.extend(decision.actions);
    }
    (state, actions)
}

#[test]
fn a_death_ends_the_others_and_explains_them() {
    use Input::*;
    let (state, actions) = feed(
        3,
        &[
            (100, Ended(0, Outcome::PeerLost)),
            (100, Tick),
            (150, Ended(1, KILLED)),
            (150, Tick),
            // Seen before anything was done: its own end.
            (160, Ended(0, KILLED)),
            (160, Tick),
            (200, Ended(2, Outcome::Exit(1))),
            (210, Tick),
        ],
    );
    assert_eq!(actions, [Action::Signal(2, Signal::SIGKILL)]);
    assert_eq!(state.end(), Some(End::Failed));
    let outcomes: Vec<_> = state.ended.iter().map(|end| (end.rank, end.outcome)).collect();
    assert_eq!(outcomes, [(0, Outcome::PeerLost), (1, KILLED), (2, Outcome::Ended)]);
}

#[test]
fn a_pause_is_asked_for_once_and_awaited() {
    use Input::*;
    let pause = Asked(Ask::Pause(Signal::SIGUSR1));
    let (state, actions) = feed(
        2,
        &[
            (100, pause),
            (100, pause),
            (900, Ended(0, Outcome::Paused)),
            (900, Tick),
            (1000, Ended(1, Outcome::PeerLost)),
            (1900, Tick),
        ],
    );
    let both = [0, 1].map(|rank| Action::Signal(rank, Signal::SIGUSR1));
    assert_eq!(actions, both);
    assert_eq!(state.end(), Some(End::Paused(Signal::SIGUSR1)));
}

#[test]
fn a_pause_that_takes_too_long_is_an_end() {
    use Input::*;
    let mut inputs = vec![(0, Asked(Ask::Pause(Signal::SIGTERM)))];
    inputs.extend((0..=22).flat_map(|s| [(s * 1000, Progress(0)), (s * 1000, Tick)]));
    let (state, actions) = feed(1, &inputs);
    assert_eq!(actions, [Signal::SIGUSR1, Signal::SIGKILL].map(|s| Action::Signal(0, s)));
    assert_eq!(state.end(), None);
    let (state, _) = step(state, Duration::from_secs(23), Tick);
    assert_eq!(state.end(), Some(End::Interrupted(Signal::SIGTERM)), "though it still runs");
}

#[test]
fn whoever_finishes_before_a_pause_is_not_paused() {
    use Input::*;
    let pause = Asked(Ask::Pause(Signal::SIGUSR1));
    let (state, _) = feed(1, &[(0, pause), (10, Ended(0, Outcome::Finished)), (10, Tick)]);
    assert_eq!(state.end(), Some(End::Finished));
    let (state, _) = feed(1, &[(0, pause), (10, Ended(0, KILLED)), (10, Tick)]);
    assert_eq!(state.end(), Some(End::Failed));
}

#[test]
fn silence_and_standstill_are_deaths() {
    use Input::*;
    let seconds = |to: u64, inputs: fn(u64) -> Vec<Input>| -> Vec<(u64, Input)> {
        (1..=to).flat_map(|s| inputs(s).into_iter().map(move |i| (s * 1000, i))).collect()
    };
    let (state, actions) = feed(2, &seconds(12, |_| vec![Progress(0), Tick]));
    assert_eq!((state.ended[0].rank, state.ended[0].outcome), (1, Outcome::Unresponsive));
    assert_eq!(actions[0], Action::Signal(1, Signal::SIGKILL));
    let (state, _) = feed(2, &seconds(62, |_| vec![Progress(0), Alive(1), Tick]));
    assert_eq!((state.ended[0].rank, state.ended[0].outcome), (1, Outcome::Stalled));
    let (state, _) = feed(2, &seconds(100, |_| vec![Progress(0), Progress(1), Tick]));
    assert_eq!(state.phase, Phase::Running);
}

#[test]
fn those_that_are_left_save_what_is_worth_it() {
    use Input::*;
    let start = [(0, Saved), (1000, Progress(0)), (1000, Progress(1)), (1000, Tick)];
    // Little was done: they are killed at once.
    let soon = [(2000, Ended(1, KILLED)), (2000, Tick), (2000, Tick)];
    let (_, actions) = feed(2, &[&start[..], &soon].concat());
    assert_eq!(actions, [Action::Signal(0, Signal::SIGKILL)]);
    // Much: they end by themselves...
    let later = [(7000, Ended(1, KILLED)), (7000, Tick), (7000, Tick), (9000, Tick)];
    let (state, actions) = feed(2, &[&start[..], &later].concat());
    assert_eq!((state.phase, actions.len()), (Phase::Recovering { since: ms(7000) }, 0));
    let (state, _) = step(state, ms(9500), Ended(0, Outcome::PeerLost));
    let (state, _) = step(state, ms(9500), Tick);
    assert_eq!(state.end(), Some(End::Failed));
    assert_eq!(first_cause(&state.ended).map(|cause| cause.rank), Some(1));
    // ...or not.
    let stays = [(10_000, Tick), (10_000, Tick)];
    let (_, actions) = feed(2, &[&start[..], &later, &stays].concat());
    assert_eq!(actions, [Action::Signal(0, Signal::SIGKILL)]);
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_supervisors_own_absence_is_nobodys_fault() {
    use Input::*;
    let (state, _) = feed(1, &[(500, Alive(0)), (500, Tick), (300_000, Tick)]);
    assert_eq!(state.phase, Phase::Running);
    let (state, _) = feed(1, &[(300_000, Tick), (300_500, Tick), (309_000, Tick)]);
    assert_eq!(state.phase, Phase::Running);
}

#[test]
fn nothing_follows_the_end() {
    use Input::*;
    let (state, _) = feed(1, &[(0, Ended(0, Outcome::Finished)), (1, Tick)]);
    for input in [Tick, Ended(0, KILLED), Asked(Ask::End(Signal::SIGINT)), Alive(9)] {
        let (after, decision) = step(state.clone(), Duration::from_secs(99), input);
        assert_eq!((after.end(), decision.actions.len()), (Some(End::Finished), 0));
    }
}

#[test]
fn what_signals_ask_for() {
    assert_eq!(Ask::of(Signal::SIGUSR1, false), Ask::Pause(Signal::SIGUSR1));
    assert_eq!(Ask::of(Signal::SIGTERM, true), Ask::Pause(Signal::SIGTERM));
    assert_eq!(Ask::of(Signal::SIGTERM, false), Ask::End(Signal::SIGTERM));
    assert_eq!(Ask::of(Signal::SIGINT, true), Ask::End(Signal::SIGINT));
}
