//! What to do with a worker group as things happen to it: a pure function of (now, state, input) to
//! (state, actions, reason), without clocks, processes or sockets.
//!
//! [`super::WorkerGroup`] feeds it what it sees and carries out what it says; tests do the same with made-up ranks in
//! virtual time. Inputs only record; decisions are made on [`Input::Tick`], so that ends that were seen together
//! are judged together.

#[cfg(test)]
mod tests;

use std::time::Duration;

use nix::sys::signal::Signal;

use super::cause::{Ended, Outcome, Verdict, verdict};

/// Between SIGKILL and giving up on a process: one stuck in the kernel may take for ever. Ranks get no gentler
/// signal before, since nothing is lost with them.
pub const GRACE: Duration = Duration::from_secs(2);
/// So much work since all was saved is worth waiting for those that can save it.
const WORTH_RECOVERY: Duration = Duration::from_secs(5);
/// A supervisor that was not looking for so long has itself been stopped: the ranks are not to blame for what
/// it did not hear.
const ABSENCE: Duration = Duration::from_secs(1);

/// How long things may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Without any sign of life of a rank.
    pub heartbeat: Duration,
    /// Without progress of a rank; `None` is for ever.
    pub progress: Option<Duration>,
    /// To finish a step and save it, when asked to pause.
    pub pause: Duration,
    /// For those that are left to save what they have in memory, when one has died.
    pub recovery: Duration,
}

/// What somebody wants of the worker group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Finish the step, save, end.
    Pause(Signal),
    /// End.
    End(Signal),
}

impl Ask {
    /// What a signal asks of the ranks, of a stage that can be paused or not. SIGTERM comes from schedulers, which
    /// give some time before they kill; Ctrl-C and a hangup from people, who would not wait.
    pub fn of(signal: Signal, can_pause: bool) -> Self {
        match signal {
            Signal::SIGUSR1 => Self::Pause(signal),
            Signal::SIGTERM if can_pause => Self::Pause(signal),
            _ => Self::End(signal),
        }
    }
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time goes on.
    Tick,
    /// A rank showed a sign of life.
    Alive(usize),
    /// A rank got on with its work.
    Progress(usize),
    /// All that is done is on disk.
    Saved,
    /// A rank's process has ended.
    Ended(usize, Outcome),
    /// The user, the scheduler or another node wants something.
    Asked(Ask),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a signal to the process group of a rank.
    Signal(usize, Signal),
}

/// Why the worker group is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A rank failed.
    Failed,
    /// Somebody asked, with this signal.
    Asked(Signal),
}

/// Where the worker group is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing unusual.
    #[default]
    Running,
    /// The ranks were asked to save and end.
    Pausing {
        /// When.
        since: Duration,
        /// Because of this signal.
        signal: Signal,
    },
    /// A rank failed; the others notice, save what they have, and end.
    Recovering {
        /// Since when.
        since: Duration,
    },
    /// The ranks are about to be ended: what has ended by itself is seen once more before.
    Terminating(Why),
    /// The ranks are being ended.
    Ending {
        /// Since when.
        since: Duration,
        /// Why.
        why: Why,
    },
    /// There is nothing left to do.
    Over(End),
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every rank finished.
    Finished,
    /// All ranks saved what they had, asked by this signal.
    Paused(Signal),
    /// All were ended because of this signal.
    Interrupted(Signal),
    /// A rank failed.
    Failed,
}

/// What is known of a worker group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Where it is in its life.
    pub phase: Phase,
    /// The ranks that have ended, in that order.
    pub ended: Vec<Ended>,
    limits: Limits,
    heard: Vec<Duration>,
    progressed: Vec<Duration>,
    /// When all was on disk, of a stage that says so.
    saved: Option<Duration>,
    ticked: Duration,
}

/// What [`step`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// To be carried out in this order.
    pub actions: Vec<Action>,
    /// Why, where something was decided.
    pub reason: Option<String>,
}

impl State {
    /// A worker group of `world_size` ranks that has just been started.
    pub fn new(world_size: usize, limits: Limits) -> Self {
        let zero = vec![Duration::ZERO; world_size];
        Self {
            phase: Phase::Running,
            ended: Vec::new(),
            limits,
            heard: zero.clone(),
            progressed: zero,
            saved: None,
            ticked: Duration::ZERO,
        }
    }

    /// How it went, when it is over.
    pub fn end(&self) -> Option<End> {
        match self.phase {
            Phase::Over(end) => Some(end),
            _ => None,
        }
    }

    /// Whether a rank has ended.
    pub fn has_ended(&self, rank: usize) -> bool {
        self.ended.iter().any(|end| end.rank == rank)
    }

    /// The ranks that still run.
    fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.heard.len()).filter(|rank| !self.has_ended(*rank))
    }

    fn signal_all(&self, signal: Signal) -> Vec<Action> {
        self.alive().map(|rank| Action::Signal(rank, signal)).collect()
    }
}

/// What follows from `input` at `now`, which is counted from the start of the worker group.
pub fn step(mut state: State, now: Duration, input: Input) -> (State, Decision) {
    let decision = match input {
        Input::Tick => tick(&mut state, now),
        Input::Alive(rank) => {
            note(&mut state.heard, rank, now);
            Decision::nothing()
        }
        Input::Progress(rank) => {
            note(&mut state.heard, rank, now);
            note(&mut state.progressed, rank, now);
            Decision::nothing()
        }
        Input::Saved => {
            state.saved = Some(now);
            Decision::nothing()
        }
        Input::Ended(rank, outcome) => {
            if rank < state.heard.len() && !state.has_ended(rank) {
                let ours = matches!(state.phase, Phase::Ending { .. });
                let outcome = if ours { Outcome::Ended } else { outcome };
                state.ended.push(Ended { rank, outcome, at: now });
            }
            Decision::nothing()
        }
        Input::Asked(ask) => asked(&mut state, now, ask),
    };
    (state, decision)
}

fn note(times: &mut [Duration], rank: usize, now: Duration) {
    if let Some(time) = times.get_mut(rank) {
        *time = now;
    }
}

impl Decision {
    fn nothing() -> Self {
        Self { actions: Vec::new(), reason: None }
    }

    fn because(reason: impl Into<String>, actions: Vec<Action>) -> Self {
        Self { actions, reason: Some(reason.into()) }
    }
}

fn asked(state: &mut State, now: Duration, ask: Ask) -> Decision {
    match (ask, state.phase) {
        (Ask::Pause(signal), Phase::Running) => {
            state.phase = Phase::Pausing { since: now, signal };
            let limit = state.limits.pause.as_secs();
            let reason = format!("{signal}: ranks finish their step and save it, within {limit} s");
            Decision::because(reason, state.signal_all(Signal::SIGUSR1))
        }
        (Ask::End(signal), Phase::Running | Phase::Pausing { .. } | Phase::Recovering { .. }) => {
            state.phase = Phase::Terminating(Why::Asked(signal));
            Decision::because(format!("{signal}: ranks are ended"), Vec::new())
        }
        _ => Decision::nothing(),
    }
}

fn tick(state: &mut State, now: Duration) -> Decision {
    forgive_absence(state, now);
    if state.end().is_none() && state.ended.len() == state.heard.len() {
        let end = end_of(state);
        state.phase = Phase::Over(end);
        return Decision::because("every rank has ended", Vec::new());
    }
    match state.phase {
        Phase::Running => watch(state, now),
        Phase::Pausing { since, signal } => {
            if now.saturating_sub(since) >= state.limits.pause {
                state.phase = Phase::Terminating(Why::Asked(signal));
                let waited = state.limits.pause.as_secs();
                let reason = format!("not all ranks had saved within {waited} s of {signal}");
                return Decision::because(reason, Vec::new());
            }
            watch(state, now)
        }
        Phase::Recovering { since } => {
            if now.saturating_sub(since) < state.limits.recovery {
                return Decision::nothing();
            }
            state.phase = Phase::Terminating(Why::Failed);
            Decision::because("not all that are left have saved and ended", Vec::new())
        }
        Phase::Terminating(why) => {
            state.phase = Phase::Ending { since: now, why };
            Decision::because("ranks that are left are killed", state.signal_all(Signal::SIGKILL))
        }
        Phase::Ending { since, why } => give_up(state, now, since, why),
        Phase::Over(_) => Decision::nothing(),
    }
}

/// Time in which nothing could be heard does not count.
fn forgive_absence(state: &mut State, now: Duration) {
    let away = now.saturating_sub(state.ticked);
    state.ticked = now;
    if away > ABSENCE {
        for time in state.heard.iter_mut().chain(&mut state.progressed) {
            *time = (*time + away).min(now);
        }
    }
}

/// Looks for failures while ranks work.
fn watch(state: &mut State, now: Duration) -> Decision {
    if let Some((rank, outcome)) = silent(state, now) {
        state.ended.push(Ended { rank, outcome, at: now });
        state.phase = after_failure(state, now);
        let what = match outcome {
            Outcome::Stalled => "made no progress",
            _ => "gave no sign of life",
        };
        // It may not hear anything gentler.
        let kill = vec![Action::Signal(rank, Signal::SIGKILL)];
        return Decision::because(format!("rank {rank} {what}"), kill);
    }
    // Who pauses leaves the others without a peer: they are given the time that all have.
    let pausing = matches!(state.phase, Phase::Pausing { .. })
        || state.ended.iter().any(|end| end.outcome == Outcome::Paused);
    let explained = pausing && !state.ended.iter().any(|end| end.outcome.is_primary());
    match verdict(&state.ended, now) {
        Verdict::Stop if !explained => {
            state.phase = after_failure(state, now);
            Decision::because("a rank failed", Vec::new())
        }
        _ => Decision::nothing(),
    }
}

/// What comes after a failure: the others notice that they have lost a peer, and where much has been done since
/// it was last saved, they are given the time to save it.
fn after_failure(state: &State, now: Duration) -> Phase {
    let unsaved = state.saved.map_or(Duration::ZERO, |saved| now.saturating_sub(saved));
    let healthy = state.alive().next().is_some() && !state.limits.recovery.is_zero();
    if healthy && unsaved >= WORTH_RECOVERY {
        Phase::Recovering { since: now }
    } else {
        Phase::Terminating(Why::Failed)
    }
}

/// A running rank that was not heard of, or did not get on, for too long.
fn silent(state: &State, now: Duration) -> Option<(usize, Outcome)> {
    let since = |times: &[Duration], rank: usize| now.saturating_sub(times[rank]);
    let Limits { heartbeat, progress, .. } = state.limits;
    let unheard = state.alive().find(|rank| since(&state.heard, *rank) > heartbeat);
    if let Some(rank) = unheard {
        return Some((rank, Outcome::Unresponsive));
    }
    let limit = progress?;
    // The one that has stood still the longest is waited for by the others.
    let stalled = state.alive().min_by_key(|rank| state.progressed[*rank])?;
    (since(&state.progressed, stalled) > limit).then_some((stalled, Outcome::Stalled))
}

fn give_up(state: &mut State, now: Duration, since: Duration, why: Why) -> Decision {
    if now.saturating_sub(since) < GRACE {
        return Decision::nothing();
    }
    let left: Vec<String> = state.alive().map(|rank| rank.to_string()).collect();
    state.phase = Phase::Over(end_by(why));
    Decision::because(format!("rank {} can't be ended", left.join(", ")), Vec::new())
}

fn end_by(why: Why) -> End {
    match why {
        Why::Failed => End::Failed,
        Why::Asked(signal) => End::Interrupted(signal),
    }
}

/// How a worker group went of which every rank has ended.
fn end_of(state: &State) -> End {
    let any = |wanted: fn(Outcome) -> bool| state.ended.iter().any(|end| wanted(end.outcome));
    match state.phase {
        Phase::Terminating(why) | Phase::Ending { why, .. } => end_by(why),
        Phase::Over(end) => end,
        Phase::Recovering { .. } => End::Failed,
        _ if any(Outcome::is_primary) => End::Failed,
        // Those that paused are the peers that the others lost.
        Phase::Pausing { signal, .. } if any(|outcome| outcome == Outcome::Paused) => {
            End::Paused(signal)
        }
        // Asked by somebody else than this supervisor.
        _ if any(|outcome| outcome == Outcome::Paused) => End::Paused(Signal::SIGUSR1),
        _ if any(Outcome::is_failure) => End::Failed,
        _ => End::Finished,
    }
}
