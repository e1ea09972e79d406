//! A thread that serves the connections to an address, until it is dropped.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::error::{CommError, Result};

/// The thread, and where it listens.
#[derive(Debug)]
pub(crate) struct Service {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    /// Listens at `bind` (port 0 takes any free one), and runs `serve` in a thread of this name.
    ///
    /// # Errors
    /// The address can't be listened on (a port in use), or the system gives no thread.
    pub(crate) fn start<F: Future<Output = ()>>(
        bind: SocketAddr,
        name: &'static str,
        serve: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> Result<Self> {
        let failed = |why: std::io::Error| CommError::bind(bind, why);
        let listener = std::net::TcpListener::bind(bind).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = runtime()?;
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener) => {}
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(run)
            .map_err(|why| CommError::system("start a thread that listens", why))?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, with the real port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Either the thread hears the sender go, or it has ended by itself.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What drives the connections of one thread.
pub(crate) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| CommError::system("start the network runtime", why))
}
