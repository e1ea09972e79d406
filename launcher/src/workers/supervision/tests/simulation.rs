//! Made-up ranks in virtual time, to put the supervision of ranks and the decision about restarts through
//! thousands of schedules of failures. What must hold of each is checked; a seed gives the same schedule again.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::workers::cause::{History, MAX_FRUITLESS, Outcome, Restart, SETTLE, first_cause};
use crate::workers::supervision::{Action, Ask, End, GRACE, Input, Limits, State, step};

/// As in a real worker group.
const TICK: Duration = Duration::from_millis(50);
/// A rank's time for a step.
const STEP: Duration = Duration::from_millis(400);
/// Steps between two checkpoints.
const CHECKPOINT: u64 = 5;
/// Limits of every worker group.
const LIMITS: Limits = Limits {
    heartbeat: Duration::from_secs(10),
    progress: Some(Duration::from_secs(30)),
    pause: Duration::from_secs(8),
    recovery: Duration::from_secs(3),
};

/// What befalls a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A signal.
    Killed,
    /// A crash of its own.
    Crashed,
    /// An error that would come again.
    Error,
    /// Its node is gone.
    NodeLost,
    /// It shows no sign of life any more.
    Stopped,
    /// It lives, and does nothing.
    Stuck,
}

/// A job to be: who fails when, and what is asked of it.
#[derive(Clone, Debug)]
struct Schedule {
    world_size: usize,
    steps: u64,
    max_restarts: u32,
    /// Of each attempt: when, which rank, what.
    faults: Vec<Vec<(Duration, usize, Fault)>>,
    /// Of the job: in which attempt, when, what.
    ask: Option<(usize, Duration, Ask)>,
}

impl Schedule {
    fn random(random: &mut ChaCha8Rng, world_size: usize) -> Self {
        let steps = random.random_range(1..60);
        let lifetime = STEP * steps as u32;
        let attempts = random.random_range(0..6);
        let mut fault = || {
            let at = lifetime.mul_f64(random.random_range(0.0..1.1));
            let what = match random.random_range(0..12) {
                0..=4 => Fault::Killed,
                5 | 6 => Fault::Crashed,
                7 => Fault::Error,
                8 => Fault::NodeLost,
                9 | 10 => Fault::Stopped,
                _ => Fault::Stuck,
            };
            (at, random.random_range(0..world_size), what)
        };
        let faults = (0..attempts).map(|_| vec![fault(), fault()]).collect();
        let ask = random.random_bool(0.4).then(|| {
            let ask = match random.random_range(0..3) {
                0 => Ask::Pause(Signal::SIGUSR1),
                1 => Ask::Pause(Signal::SIGTERM),
                _ => Ask::End(Signal::SIGINT),
            };
            (random.random_range(0..2), lifetime.mul_f64(random.random_range(0.0..1.0)), ask)
        });
        let max_restarts = random.random_range(0..6);
        Self { world_size, steps, max_restarts, faults, ask }
    }
}

/// A made-up rank.
#[derive(Clone, Debug)]
struct Rank {
    ended: Option<Outcome>,
    stopped: bool,
    stuck: bool,
    pausing: bool,
    /// When it ends, as what, once that is settled.
    dying: Option<(Duration, Outcome)>,
}

/// A made-up worker group: ranks that take each step together.
struct World {
    ranks: Vec<Rank>,
    done: u64,
    total: u64,
    next_step: Duration,
    saved: u64,
    /// The ranks something befell by itself.
    hit: Vec<usize>,
}

impl World {
    fn new(world_size: usize, saved: u64, total: u64) -> Self {
        let rank = Rank { ended: None, stopped: false, stuck: false, pausing: false, dying: None };
        let ranks = vec![rank; world_size];
        Self { ranks, done: saved, total, next_step: STEP, saved, hit: Vec::new() }
    }

    fn befall(&mut self, now: Duration, rank: usize, fault: Fault) {
        let victim = &mut self.ranks[rank];
        if victim.ended.is_some() || victim.dying.is_some() {
            return;
        }
        self.hit.push(rank);
        let outcome = match fault {
            Fault::Killed => Outcome::Killed(Signal::SIGKILL),
            Fault::Crashed => Outcome::Exit(101),
            Fault::Error => Outcome::Exit(1),
            Fault::NodeLost => Outcome::NodeLost,
            Fault::Stopped => {
                victim.stopped = true;
                return;
            }
            Fault::Stuck => {
                victim.stuck = true;
                return;
            }
        };
        victim.dying = Some((now, outcome));
    }

    fn signal(&mut self, now: Duration, rank: usize, signal: Signal) -> Result<(), String> {
        let target = &mut self.ranks[rank];
        match signal {
            _ if target.ended.is_some() => Err(format!("{signal} to rank {rank}, which has ended")),
            Signal::SIGUSR1 => {
                target.pausing = true;
                Ok(())
            }
            // The kernel takes a moment.
            _ => {
                target.dying = Some((now + TICK, Outcome::Killed(signal)));
                Ok(())
            }
        }
    }

    /// A step, if all can take it; or the pause that one of them was asked for.
    fn work(&mut self, now: Duration) -> bool {
        let able = |rank: &Rank| {
            rank.ended.is_none() && rank.dying.is_none() && !rank.stopped && !rank.stuck
        };
        if now < self.next_step || !self.ranks.iter().all(able) {
            return false;
        }
        self.next_step = now + STEP;
        self.done += 1;
        let pausing = self.ranks.iter().any(|rank| rank.pausing);
        if pausing || self.done.is_multiple_of(CHECKPOINT) || self.done >= self.total {
            self.saved = self.done;
        }
        let end = match (self.done >= self.total, pausing) {
            (true, _) => Outcome::Finished,
            (false, true) => Outcome::Paused,
            (false, false) => return true,
        };
        self.ranks.iter_mut().for_each(|rank| rank.dying = Some((now, end)));
        true
    }

    /// Those whose time has come end; who lost a peer notices soon.
    fn ends(&mut self, now: Duration) -> Vec<(usize, Outcome)> {
        let mut ends = Vec::new();
        for (number, rank) in self.ranks.iter_mut().enumerate() {
            if let Some((_, outcome)) =
                rank.dying.filter(|(at, _)| *at <= now && rank.ended.is_none())
            {
                rank.ended = Some(outcome);
                ends.push((number, outcome));
            }
        }
        let lost = self.ranks.iter().any(|r| r.ended.is_some_and(|end| end != Outcome::Finished));
        for rank in self.ranks.iter_mut().filter(|rank| lost && rank.dying.is_none()) {
            if !rank.stopped && !rank.stuck {
                rank.dying = Some((now + 2 * TICK, Outcome::PeerLost));
            }
        }
        // Who ends by itself because of a peer has saved what it had.
        if ends.iter().any(|(_, outcome)| *outcome == Outcome::PeerLost) {
            self.saved = self.done;
        }
        ends
    }
}

/// What became of a worker group.
struct GroupRun {
    end: End,
    cause: Option<Outcome>,
    saved: u64,
    reached: u64,
}

/// One worker group, from its start to its end; an error is a broken promise.
fn group(
    schedule: &Schedule,
    attempt: usize,
    saved: u64,
    say: &mut dyn FnMut(Duration, &str),
) -> Result<GroupRun, String> {
    let mut world = World::new(schedule.world_size, saved, schedule.steps);
    let mut state = State::new(schedule.world_size, LIMITS);
    let mut faults = schedule.faults.get(attempt).cloned().unwrap_or_default();
    let ask = schedule.ask.filter(|(when, ..)| *when == attempt);
    let longest = STEP * schedule.steps as u32
        + LIMITS.heartbeat
        + LIMITS.progress.unwrap_or_default()
        + LIMITS.pause
        + LIMITS.recovery
        + SETTLE
        + GRACE * 2;
    let mut now = Duration::ZERO;
    loop {
        for (_, rank, fault) in faults.extract_if(.., |(at, ..)| *at <= now) {
            say(now, &format!("rank {rank}: {fault:?}"));
            world.befall(now, rank, fault);
        }
        let mut inputs = Vec::new();
        let saved = world.saved;
        if world.work(now) {
            inputs.extend((0..schedule.world_size).map(Input::Progress));
        }
        if world.saved > saved || now.is_zero() {
            inputs.push(Input::Saved);
        }
        let alive = world.ranks.iter().enumerate().filter(|(_, r)| r.ended.is_none() && !r.stopped);
        inputs.extend(alive.map(|(rank, _)| Input::Alive(rank)));
        inputs.extend(world.ends(now).into_iter().map(|(rank, end)| Input::Ended(rank, end)));
        inputs.extend(ask.filter(|(_, at, _)| *at <= now).map(|(.., ask)| Input::Asked(ask)));
        inputs.push(Input::Tick);
        for input in inputs {
            let (next, decision) = step(state, now, input);
            state = next;
            if let Some(reason) = decision.reason {
                say(now, &reason);
            }
            for Action::Signal(rank, signal) in decision.actions {
                world.signal(now, rank, signal)?;
            }
        }
        if let Some(end) = state.end() {
            return judge(&world, &state, end, ask.map(|(.., ask)| ask));
        }
        if now > longest {
            return Err(format!("a worker group was not over after {now:?}"));
        }
        now += TICK;
    }
}

/// What must hold of every worker group that is over.
fn judge(world: &World, state: &State, end: End, ask: Option<Ask>) -> Result<GroupRun, String> {
    let cause = first_cause(&state.ended);
    if let Some(rank) = world.ranks.iter().position(|r| r.ended.is_none() && r.dying.is_none()) {
        return Err(format!("rank {rank} outlived its worker group, which ended as {end:?}"));
    }
    match (end, ask) {
        (End::Finished, _) if world.done < world.total => {
            return Err(format!("finished after {} of {} steps", world.done, world.total));
        }
        (End::Paused(_), Some(Ask::Pause(_))) if world.saved == world.done => {}
        (End::Interrupted(_), Some(_)) | (End::Finished, _) => {}
        (End::Failed, _) if world.hit.is_empty() => return Err("failed without a fault".into()),
        (End::Failed, _) => {
            // Who noticed is not to blame. But of ranks that wait for each other all stand still: which of them
            // began is shown by their last collectives, which are not modelled here.
            let certain = |outcome| outcome != Outcome::Stalled && outcome != Outcome::PeerLost;
            let blamed = cause.filter(|cause| certain(cause.outcome)).map(|cause| cause.rank);
            if blamed.is_some_and(|rank| !world.hit.contains(&rank)) {
                return Err(format!("rank {blamed:?} was blamed, but hit were {:?}", world.hit));
            }
        }
        (end, ask) => return Err(format!("ended as {end:?}, asked for {ask:?}")),
    }
    Ok(GroupRun {
        end,
        cause: cause.map(|cause| cause.outcome),
        saved: world.saved,
        reached: world.done,
    })
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum JobEnd {
    /// All steps were done.
    Finished,
    /// Saved, as asked.
    Paused,
    /// Ended, as asked.
    Interrupted,
    /// Given up; trying again may help.
    GaveUp,
    /// Given up; the same would come again.
    Hopeless,
}

/// Runs the job of a seed; the error is a promise that was broken, in words.
fn job(
    seed: u64,
    world_size: usize,
    say: &mut dyn FnMut(usize, Duration, &str),
) -> Result<JobEnd, String> {
    let schedule = Schedule::random(&mut ChaCha8Rng::seed_from_u64(seed), world_size.max(1));
    let mut history = History::default();
    let mut saved = 0;
    // Every restart but the fruitless ones gets on by a step at least.
    let most = schedule.max_restarts as usize + 1;
    for attempt in 0..most {
        let run = group(&schedule, attempt, saved, &mut |now, text| say(attempt, now, text))?;
        if run.saved < saved {
            return Err(format!("went back from step {saved} to {}", run.saved));
        }
        saved = run.saved;
        match run.end {
            End::Finished => return Ok(JobEnd::Finished),
            End::Paused(_) => return Ok(JobEnd::Paused),
            End::Interrupted(_) => return Ok(JobEnd::Interrupted),
            End::Failed => {}
        }
        let reached = BTreeMap::from([("steps".to_owned(), run.reached)]);
        let cause = run.cause.unwrap_or(Outcome::Ended);
        match history.decide(schedule.max_restarts, cause, &reached) {
            Restart::Again => say(attempt, Duration::ZERO, "the ranks are started again"),
            Restart::GiveUp { why, hopeless } => {
                say(attempt, Duration::ZERO, &format!("no restart: {why}"));
                return Ok(if hopeless { JobEnd::Hopeless } else { JobEnd::GaveUp });
            }
        }
    }
    Err(format!(
        "{most} attempts, and neither an end nor a decision ({MAX_FRUITLESS} may be fruitless)"
    ))
}

/// What happens in the job of a seed, line by line, and its end.
fn trace(seed: u64, world_size: usize) -> (Result<JobEnd, String>, Vec<String>) {
    let mut lines = Vec::new();
    let mut say = |attempt: usize, at: Duration, text: &str| {
        lines.push(format!("attempt {} at {at:?}: {text}", attempt + 1));
    };
    let end = job(seed, world_size, &mut say);
    (end, lines)
}

#[test]
fn every_promise_is_kept_under_thousands_of_schedules() {
    let mut ends = BTreeMap::new();
    for seed in 0..7500 {
        let world_size = [1, 2, 4, 8, 16][seed as usize % 5];
        match job(seed, world_size, &mut |_, _, _| {}) {
            Ok(end) => *ends.entry(end).or_insert(0) += 1,
            Err(what) => {
                let lines = trace(seed, world_size).1.join("\n");
                panic!("seed {seed}, {world_size} ranks: {what}\n{lines}")
            }
        }
    }
    // Nothing of it is a matter of course.
    assert_eq!(ends.len(), 5, "{ends:?}");
    assert!(ends.values().all(|count| *count > 40), "{ends:?}");
}

#[test]
fn a_seed_gives_the_same_again() {
    assert_eq!(trace(7, 4), trace(7, 4));
    assert!((0..20).any(|seed| trace(seed, 4).1.len() > 5));
}
