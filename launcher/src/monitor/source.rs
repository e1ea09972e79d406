//! Where samples come from: the files of a run, this machine, or other machines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use color_eyre::eyre::eyre;

use super::collect::Eyes;
use super::curve::Curve;
use super::hosts::Host;
use super::sample::{self, Sample};
use super::show::View;
use super::store;
use super::window::{WINDOW, Window};
use crate::error::{LaunchError, Result};

/// Looks again and again.
pub struct Source {
    kind: Kind,
    /// What is looked at, in a word or two.
    job: String,
    /// The loss of the run.
    loss: Curve,
}

enum Kind {
    /// A run directory.
    Run(PathBuf),
    /// This machine, and its latest samples.
    Machine(Box<Eyes>, Vec<Sample>),
    /// Other machines.
    Hosts(Vec<Host>),
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Look {
    windows: Vec<Window>,
    time: f64,
    job: String,
    loss: Curve,
}

impl Look {
    /// When it was seen, in seconds since 1970.
    pub fn time(&self) -> f64 {
        self.time
    }

    /// To be shown.
    pub fn view(&self) -> View<'_> {
        View::new(&self.job, &self.windows, &self.loss, self.time)
    }
}

impl Source {
    /// A run directory; else these hosts, by this remote shell; else this machine.
    pub fn open(run: Option<&Path>, hosts: &[String], rsh: &str) -> Result<Self> {
        if let Some(run) = run {
            return Self::of_run(run);
        }
        if hosts.is_empty() {
            let kind = Kind::Machine(Box::new(Eyes::open()), Vec::new());
            return Ok(Self { kind, job: "this machine".into(), loss: Curve::default() });
        }
        let hosts = hosts.iter().enumerate();
        let hosts = hosts.map(|(node, host)| Host::watch(node, host, rsh));
        Ok(Self {
            kind: Kind::Hosts(hosts.collect::<Result<_>>()?),
            job: "hosts".into(),
            loss: Curve::default(),
        })
    }

    fn of_run(run: &Path) -> Result<Self> {
        if !run.is_dir() {
            return Err(LaunchError::Usage(format!(
                "{}: not a run directory\n  help: give the --run-dir of a run, or nothing to watch this machine",
                run.display()
            ))
            .into());
        }
        let mut loss = Curve::default();
        store::each(run, store::LEADER, |sample| loss.take(&sample))?;
        let job = run.canonicalize()?;
        let job = job.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { kind: Kind::Run(run.to_owned()), job, loss })
    }

    /// Waits until everything that is looked at has answered, or is known not to.
    pub fn wait(&self) {
        let Kind::Hosts(hosts) = &self.kind else { return };
        while !hosts.iter().all(Host::has_answered) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Looks.
    ///
    /// # Errors
    ///
    /// There is nothing of a run yet.
    pub fn look(&mut self) -> Result<Look> {
        let windows = match &mut self.kind {
            Kind::Run(run) => {
                let windows = store::read(run)?;
                if windows.is_empty() {
                    return Err(eyre!(
                        "{}: nothing has been collected of this run yet; `reclora-launch run` writes it to monitor/ \
                         while it works",
                        run.display()
                    ));
                }
                windows
            }
            Kind::Machine(eyes, samples) => {
                samples.push(eyes.sample(0, "", Vec::new()));
                let from = sample::now() - WINDOW;
                samples.retain(|sample| sample.time >= from);
                vec![Window::new("this machine", samples.clone())]
            }
            Kind::Hosts(hosts) => hosts.iter().map(Host::window).collect(),
        };
        let leader = windows.iter().find(|window| window.name == store::LEADER);
        for sample in leader.into_iter().flat_map(|window| &window.samples) {
            self.loss.take(sample);
        }
        Ok(Look { windows, time: sample::now(), job: self.job.clone(), loss: self.loss.clone() })
    }
}
