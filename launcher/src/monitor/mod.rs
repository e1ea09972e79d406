//! What the machines and the ranks of a run do: collected on every node, and shown.
//!
//! Every launcher has a [`collect::Collector`], which writes a [`sample::Sample`] of its node each second into
//! `RUN/monitor/` ([`store`]). Whoever watches reads these files: a run needs no watcher, watchers don't disturb
//! it, and a node that is gone is one whose samples grow old. [`source`] looks; [`window`] makes rates of samples,
//! [`goodput`] says what a run's time went to, [`verdict`] says what holds the run up. [`show`] puts all of it together
//! for the views: text, a [`terminal`], and over HTTP ([`serve`]) a page and Prometheus' [`metrics`].

pub mod collect;
pub mod curve;
pub mod goodput;
pub mod gpu;
pub mod hosts;
pub mod metrics;
pub mod process;
pub mod sample;
pub mod serve;
pub mod show;
pub mod source;
pub mod store;
pub mod tensorboard;
pub mod terminal;
pub mod usage;
pub mod verdict;
pub mod watch;
pub mod window;
