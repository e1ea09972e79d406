//! Prefetching: a thread prepares the next items while the consumer works on the current one.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

type Producer<'scope, T> = Box<dyn FnMut() -> Option<T> + Send + 'scope>;

/// Items made ahead of time by a thread, in the producer's order.
///
/// Dropping it stops the thread after the item it is working on and waits for it.
pub struct Prefetch<'scope, T> {
    source: Source<'scope, T>,
    stalls: Stalls,
}

/// How the consumer had to wait: near zero when the producer keeps up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Items handed out.
    pub items: u64,
    /// Items that were not ready when they were asked for.
    pub count: u64,
    /// Time waited in total.
    pub waited: Duration,
    /// The longest wait for one item.
    pub longest: Duration,
}

enum Source<'scope, T> {
    Thread {
        items: Receiver<T>,
        thread: ScopedJoinHandle<'scope, ()>,
    },
    /// The system allows no further thread: items are made when asked for. Slower, same items.
    Inline(Arc<Mutex<Producer<'scope, T>>>),
    Finished,
}

impl<'scope, T: Send + 'scope> Prefetch<'scope, T> {
    /// Starts a thread called `name` that keeps up to `depth` items (at least 1) ready. `producer`, which may
    /// borrow what outlives `scope`, returns `None` when there is nothing more.
    pub fn spawn(
        scope: &'scope Scope<'scope, '_>,
        depth: usize,
        name: &str,
        producer: impl FnMut() -> Option<T> + Send + 'scope,
    ) -> Self {
        let (sender, items) = bounded(depth.max(1));
        let shared: Arc<Mutex<Producer<'scope, T>>> = Arc::new(Mutex::new(Box::new(producer)));
        let producer = Arc::clone(&shared);
        let run = move || {
            let mut produce = producer.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(item) = produce() {
                // An error means that the consumer is gone: nobody wants more.
                if sender.send(item).is_err() {
                    break;
                }
            }
        };
        let name: String = name.chars().filter(|c| *c != '\0').collect();
        let source = match Builder::new().name(name).spawn_scoped(scope, run) {
            Ok(thread) => Source::Thread { items, thread },
            Err(_) => Source::Inline(shared),
        };
        Self { source, stalls: Stalls::default() }
    }

    /// The next item, or `None` when the producer has ended.
    ///
    /// A panic of the producer is passed on to the caller: it must not look like the end.
    #[expect(
        clippy::should_implement_trait,
        reason = "waits and passes panics on, unlike most iterators"
    )]
    pub fn next(&mut self) -> Option<T> {
        let start = Instant::now();
        let mut was_ready = false;
        let item = match &self.source {
            Source::Thread { items, .. } => match items.try_recv() {
                Ok(item) => {
                    was_ready = true;
                    Some(item)
                }
                Err(_) => items.recv().ok(),
            },
            Source::Inline(producer) => producer.lock().unwrap_or_else(PoisonError::into_inner)(),
            Source::Finished => None,
        };
        let waited = start.elapsed();
        self.stalls.waited += waited;
        self.stalls.longest = self.stalls.longest.max(waited);
        self.stalls.items += u64::from(item.is_some());
        self.stalls.count += u64::from(item.is_some() && !was_ready);
        if item.is_none()
            && let Source::Thread { thread, .. } =
                std::mem::replace(&mut self.source, Source::Finished)
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
        item
    }

    /// How often and how long [`Prefetch::next`] has waited, for whoever reports it.
    pub fn stalls(&self) -> Stalls {
        self.stalls
    }
}

impl<T> Drop for Prefetch<'_, T> {
    fn drop(&mut self) {
        if let Source::Thread { items, thread } =
            std::mem::replace(&mut self.source, Source::Finished)
        {
            drop(items);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn keeps_the_order_and_ends() {
        for depth in [0, 1, 3, 100] {
            let mut numbers = 0..50;
            std::thread::scope(|scope| {
                let mut prefetch = Prefetch::spawn(scope, depth, "order", move || numbers.next());
                let got: Vec<i32> = std::iter::from_fn(|| prefetch.next()).collect();
                assert_eq!(got, (0..50).collect::<Vec<_>>());
                assert_eq!(prefetch.next(), None);
            });
        }
    }

    #[test]
    fn a_scoped_producer_may_borrow() {
        let numbers: Vec<i32> = (0..20).collect();
        let got = std::thread::scope(|scope| {
            let mut rest = numbers.iter();
            let mut prefetch = Prefetch::spawn(scope, 2, "borrows", move || rest.next());
            let got: Vec<&i32> = std::iter::from_fn(|| prefetch.next()).collect();
            // One that is dropped midway does not hold up the scope.
            let mut endless = Prefetch::spawn(scope, 1, "endless", || Some(numbers.len()));
            assert_eq!(endless.next(), Some(20));
            got
        });
        assert!(got.into_iter().eq(&numbers));
    }

    #[test]
    fn dropping_midway_stops_the_thread() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        std::thread::scope(|scope| {
            let next = move || Some(counter.fetch_add(1, Ordering::SeqCst));
            let mut prefetch = Prefetch::spawn(scope, 2, "endless", next);
            assert_eq!(prefetch.next(), Some(0));
            drop(prefetch);
            // The thread has been joined, so its share of the counter is gone.
            assert_eq!(Arc::strong_count(&made), 1);
            assert!(made.load(Ordering::SeqCst) <= 5);
        });
    }

    #[test]
    fn is_bounded() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        std::thread::scope(|scope| {
            let next = move || Some(counter.fetch_add(1, Ordering::SeqCst));
            let prefetch = Prefetch::spawn(scope, 3, "bounded", next);
            std::thread::sleep(Duration::from_millis(50));
            assert!(made.load(Ordering::SeqCst) <= 4);
            drop(prefetch);
        });
    }

    #[test]
    fn a_panic_is_passed_on() {
        let mut calls = 0;
        std::thread::scope(|scope| {
            let mut prefetch = Prefetch::spawn(scope, 1, "panics", move || {
                calls += 1;
                assert!(calls < 2, "the producer broke");
                Some(calls)
            });
            assert_eq!(prefetch.next(), Some(1));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| prefetch.next()));
            assert!(result.is_err());
        });
    }

    #[test]
    fn measures_the_wait() {
        let mut left = 2;
        let stalls = std::thread::scope(|scope| {
            let mut prefetch = Prefetch::spawn(scope, 1, "slow", move || {
                std::thread::sleep(Duration::from_millis(30));
                left -= 1;
                (left >= 0).then_some(left)
            });
            while prefetch.next().is_some() {}
            prefetch.stalls()
        });
        assert!(stalls.waited >= Duration::from_millis(50));
        assert_eq!((stalls.items, stalls.count), (2, 2));
        assert!(stalls.longest >= Duration::from_millis(25) && stalls.longest <= stalls.waited);
    }

    #[test]
    fn what_is_ready_is_no_stall() {
        let mut numbers = 0..8;
        let stalls = std::thread::scope(|scope| {
            let mut prefetch = Prefetch::spawn(scope, 8, "fast", move || numbers.next());
            // The thread has filled the channel before the first item is asked for.
            while !matches!(&prefetch.source, Source::Thread { items, .. } if items.len() == 8) {
                std::thread::yield_now();
            }
            while prefetch.next().is_some() {}
            prefetch.stalls()
        });
        assert_eq!((stalls.items, stalls.count), (8, 0));
    }
}
