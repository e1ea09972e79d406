//! Worker groups of shell scripts: real processes, real signals.

use super::*;
use crate::progress::display::Display;
use nix::sys::signal::kill;
use nix::unistd::Pid;

fn group(script: &str, world_size: usize, dir: &std::path::Path) -> GroupSpec {
    GroupSpec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        plan: GroupPlan {
            stage: "tune".into(),
            run_dir: dir.into(),
            logs: dir.join("logs/tune/attempt_1"),
            tee: Shown::None,
            binding: Binding::None,
            world_size,
            first_rank: 0,
            local_world_size: world_size,
        },
        threads: 1,
        part: None,
        meeting: None,
        host: None,
        watch: std::sync::Arc::default(),
    }
}

fn run_script(script: &str, world_size: usize) -> ((End, WorkerGroup), tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let spec = group(script, world_size, dir.path());
    let end = run_spec(&spec, &|| None).unwrap();
    (end, dir)
}

fn run_spec(spec: &GroupSpec, asked: &dyn Fn() -> Option<Ask>) -> Result<(End, WorkerGroup)> {
    let limits = Limits {
        heartbeat: Duration::from_secs(60),
        progress: None,
        pause: Duration::from_secs(5),
        recovery: Duration::ZERO,
    };
    run(spec, limits, &|_| Ok(Vec::new()), &mut Display::new("tune"), asked)
}

fn failed((end, group): (End, WorkerGroup)) -> GroupFailure {
    assert_eq!(end, End::Failed);
    group.failure()
}

#[test]
fn success_and_logs() {
    let (end, dir) = run_script("echo out $RANK; echo err $RANK >&2", 2);
    assert_eq!(end.0, End::Finished);
    let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
    assert_eq!(read("logs/tune/attempt_1/rank_1/stdout.log"), "out 1\n");
    assert_eq!(read("logs/tune/attempt_1/rank_0/stderr.log"), "err 0\n");
}

#[test]
fn first_cause_is_the_killed_rank_not_the_one_that_noticed() {
    let script = "if [ $RANK = 0 ]; then echo lost >&2; exit 76; fi
        if [ $RANK = 1 ]; then sleep 0.3; echo last words >&2; kill -9 $$; fi
        sleep 30";
    let start = Instant::now();
    let (end, _dir) = run_script(script, 3);
    let failure = failed(end);
    assert_eq!(failure.cause, 1);
    assert_eq!(failure.ranks[0].outcome, Outcome::PeerLost);
    assert_eq!(failure.ranks[1].outcome, Outcome::Killed(Signal::SIGKILL));
    assert_eq!(failure.ranks[1].log_tail, ["last words"]);
    assert_eq!(failure.ranks[2].outcome, Outcome::Ended);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn reported_errors_and_progress_are_kept() {
    let script = r#"
        echo '{"event":"start","task":"t","total":10,"unit":"samples"}'
        echo '{"event":"update","task":"t","done":4,"note":""}'
        echo 'not json'
        echo '{"event":"failed","error":"it broke"}'
        exit 1"#;
    let failure = failed(run_script(script, 1).0);
    assert_eq!(failure.ranks[0].error.as_deref(), Some("it broke"));
    assert_eq!(failure.ranks[0].doing, "t, 4 samples done on this rank");
    assert_eq!(failure.reached.get("t"), Some(&4));
    assert_eq!(failure.ranks[0].outcome, Outcome::Exit(1));
}

#[test]
fn s4_grandchildren_and_ranks_that_ignore_sigterm_are_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> {0}; sleep 60; sleep 60' &
         echo $$ >> {0}; if [ $RANK = 0 ]; then sleep 0.5; exit 9; fi; sleep 60; sleep 60",
        pids.display()
    );
    let spec = group(&script, 2, dir.path());
    let failure = failed(run_spec(&spec, &|| None).unwrap());
    assert_eq!(failure.cause, 0);
    let text = std::fs::read_to_string(&pids).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    // Orphans become zombies until init takes them; a zombie is dead.
    let alive = |pid: i32| {
        kill(Pid::from_raw(pid), None).is_ok()
            && std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    let survivors = || text.lines().filter_map(|l| l.parse().ok()).filter(|p| alive(*p)).count();
    while survivors() > 0 && Instant::now() < deadline {
        std::thread::sleep(TICK);
    }
    assert_eq!(survivors(), 0);
}

#[test]
fn an_interrupt_ends_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let spec = group("sleep 60", 2, dir.path());
    let start = Instant::now();
    let ask = Ask::End(Signal::SIGINT);
    let asked = || (start.elapsed() > Duration::from_millis(200)).then_some(ask);
    let (end, _) = run_spec(&spec, &asked).unwrap();
    assert_eq!(end, End::Interrupted(Signal::SIGINT));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_pause_lets_ranks_save() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap 'sleep 0.3; touch saved_$RANK; exit 75' USR1; touch ready_$RANK
        while true; do sleep 0.05; done";
    let spec = group(&format!("cd {}; {script}", dir.path().display()), 2, dir.path());
    let there = |name: &str| (0..2).all(|r| dir.path().join(format!("{name}_{r}")).exists());
    let asked = || there("ready").then_some(Ask::Pause(Signal::SIGUSR1));
    let (end, _) = run_spec(&spec, &asked).unwrap();
    assert_eq!(end, End::Paused(Signal::SIGUSR1));
    assert!(there("saved"));
}

#[test]
fn s2_a_rank_that_is_stopped_is_missed_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let script = "while true; do echo '{\"event\":\"beat\"}'; sleep 0.1; \
        if [ $RANK = 1 ]; then kill -STOP $$; fi; done";
    let spec = group(script, 2, dir.path());
    let heartbeat = Duration::from_secs(1);
    let limits = Limits { heartbeat, ..Limits::default() };
    let started = Instant::now();
    let end = run(&spec, limits, &|_| Ok(Vec::new()), &mut Display::new("tune"), &|| None);
    let failure = failed(end.unwrap());
    assert_eq!((failure.cause, failure.ranks[1].outcome), (1, Outcome::Unresponsive));
    assert_eq!(failure.ranks[0].outcome, Outcome::Ended);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    // Signs of life are no news: they are not in the log.
    let log = dir.path().join("logs/tune/attempt_1/rank_0/stdout.log");
    assert_eq!(std::fs::read_to_string(log).unwrap(), "");
}

#[test]
fn endless_lines_do_not_fill_memory() {
    let (end, dir) = run_script("head -c 300000 /dev/zero; echo; exit 0", 1);
    assert_eq!(end.0, End::Finished);
    let log = dir.path().join("logs/tune/attempt_1/rank_0/stdout.log");
    assert_eq!(std::fs::metadata(log).unwrap().len(), 300_001);
}

#[test]
fn a_program_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = group("", 1, dir.path());
    spec.program = dir.path().join("no-such-program");
    let error = run_spec(&spec, &|| None).err().unwrap();
    assert!(error.to_string().contains("no-such-program"), "{error}");
}

/// A control group with 20 MB, and a rank that wants more and more.
#[test]
fn a_rank_that_the_kernel_killed_for_lack_of_memory_is_said_to_be() {
    let group = format!("/sys/fs/cgroup/memory/reclora-test-{}", std::process::id());
    if std::fs::create_dir(&group).is_err() {
        eprintln!("left out: no right to make control groups here");
        return;
    }
    std::fs::write(format!("{group}/memory.limit_in_bytes"), "20000000").unwrap();
    // A shell keeps what it reads.
    let script =
        format!("echo $$ > {group}/cgroup.procs; exec sh -c 'x=$(tr \"\\0\" a < /dev/zero)'");
    let end = run_script(&script, 1).0;
    std::fs::remove_dir(&group).unwrap();
    assert_eq!(failed(end).ranks[0].outcome, Outcome::OutOfMemory);
}
