//! `monitor --listen`: a page, JSON and Prometheus' text over HTTP.
//!
//! On a loopback address it answers requests whose Host is a loopback name, so that no page of another site can
//! read it through a browser (DNS rebinding). On any other address, or where a token is set, every request must
//! carry the token.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use color_eyre::eyre::WrapErr;
use serde::Deserialize;

use super::source::{Look, Source};
use super::{metrics, sample};
use crate::error::{LaunchError, Result};
use crate::output::say;

/// Environment variable with the token.
pub const TOKEN: &str = "RECLORA_MONITOR_TOKEN";
/// A token shorter than this could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Reaches for nothing outside itself.
const PAGE: &str = include_str!("page.html");

/// What the handlers share.
struct Shared {
    latest: Mutex<Result<Look, String>>,
    token: Option<String>,
    /// Seconds after which a look is old: looking has stopped.
    patience: f64,
}

/// Serves until a signal ends this process, which has nothing to clean up.
pub fn serve(mut source: Source, address: SocketAddr, interval: Duration) -> Result<()> {
    let secret = std::env::var_os(TOKEN).map(|token| {
        token.into_string().map_err(|_| LaunchError::Usage(format!("{TOKEN} is not UTF-8")))
    });
    let token = token(address.ip(), secret.transpose()?)?;
    let first = source.look().map_err(|error| error.to_string());
    let patience = 3.0 * interval.as_secs_f64() + 10.0;
    let shared = Arc::new(Shared { latest: Mutex::new(first), token, patience });
    let latest = Arc::clone(&shared);
    let look = move || {
        loop {
            std::thread::sleep(interval);
            let look = source.look().map_err(|error| error.to_string());
            *latest.latest.lock().unwrap_or_else(PoisonError::into_inner) = look;
        }
    };
    std::thread::Builder::new().name("look".into()).spawn(look).wrap_err("can't start a thread")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.wrap_err_with(|| {
            format!("can't listen on {address}; choose another port with --listen")
        })?;
        let bound = listener.local_addr()?;
        let (query, note) = match &shared.token {
            Some(_) => ("?token=...", format!(", with the token of {TOKEN}")),
            None => ("", String::new()),
        };
        say(&format!("watch at http://{bound}/{query}, metrics at http://{bound}/metrics{note}"));
        axum::serve(listener, routes(shared)).await.wrap_err("the server ended")
    })
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/api/view", get(view))
        .route("/metrics", get(metrics_text))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), admit))
        .with_state(shared)
}

/// The token that requests must carry.
fn token(ip: IpAddr, token: Option<String>) -> Result<Option<String>> {
    let usage = |what: String| Err(LaunchError::Usage(what).into());
    match token.filter(|token| !token.is_empty()) {
        Some(token) if token.len() < SHORTEST_TOKEN => {
            usage(format!("{TOKEN}: the token must have {SHORTEST_TOKEN} characters or more"))
        }
        Some(token) => Ok(Some(token)),
        None if ip.is_loopback() => Ok(None),
        None => usage(format!(
            "--listen {ip}: anybody who reaches this address could read what runs here\n  help: set {TOKEN} to a \
             secret of {SHORTEST_TOKEN} characters or more (openssl rand -hex 16), or listen on 127.0.0.1 and use \
             `ssh -L`"
        )),
    }
}

#[derive(Deserialize)]
struct Credentials {
    token: Option<String>,
}

/// Lets requests through that may ask.
async fn admit(
    State(shared): State<Arc<Shared>>,
    Query(credentials): Query<Credentials>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match refusal(shared.token.as_deref(), credentials.token, &headers) {
        Some((status, why)) => (status, why).into_response(),
        None => next.run(request).await,
    };
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:",
        ),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

/// Why a request is refused.
fn refusal(
    token: Option<&str>,
    of_query: Option<String>,
    headers: &HeaderMap,
) -> Option<(StatusCode, &'static str)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = token {
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let given = bearer.map(str::to_owned).or(of_query).unwrap_or_default();
        let why =
            "a token is needed: the header \"Authorization: Bearer TOKEN\", or ?token=TOKEN\n";
        return (!is_same(&given, token)).then_some((StatusCode::UNAUTHORIZED, why));
    }
    let host = text(header::HOST).unwrap_or_default();
    (!is_loopback(host)).then_some((StatusCode::FORBIDDEN, "ask by the name localhost\n"))
}

/// Takes as long whatever of `given` is right.
fn is_same(given: &str, token: &str) -> bool {
    let differing = given.bytes().zip(token.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == token.len() && std::hint::black_box(differing) == 0
}

/// Whether a Host header names this machine's loopback interface.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What was seen last, or why nothing was.
fn answer(shared: &Shared, with: impl FnOnce(&Look) -> Response) -> Response {
    let latest = shared.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match latest {
        Ok(look) if sample::now() - look.time() > shared.patience => {
            let age = sample::now() - look.time();
            let why =
                format!("nothing could be looked at for {age:.0} s: see the disk of the run\n");
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
        Ok(look) => with(&look),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

async fn view(State(shared): State<Arc<Shared>>) -> Response {
    answer(&shared, |look| {
        ([(header::CONTENT_TYPE, "application/json")], look.view().json()).into_response()
    })
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Response {
    answer(&shared, |look| match metrics::text(&look.view()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_ask() {
        for host in ["localhost", "LOCALHOST:9400", "127.0.0.1:9400", "127.8.0.1", "[::1]:9400"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:9400", "10.0.0.1", "[::2]", "[::1"]
        {
            assert_eq!(is_loopback(host), host == "[::1", "{host}");
        }
        let of = |name: header::HeaderName, value: &str| {
            HeaderMap::from_iter([(name, header::HeaderValue::from_str(value).unwrap())])
        };
        let status = |token, query: Option<&str>, headers: &HeaderMap| {
            refusal(token, query.map(str::to_owned), headers).map(|(status, _)| status.as_u16())
        };
        let secret = "0123456789abcdef";
        assert_eq!(status(None, None, &of(header::HOST, "localhost")), None);
        assert_eq!(status(None, None, &of(header::HOST, "evil.example")), Some(403));
        assert_eq!(status(None, None, &HeaderMap::new()), Some(403));
        let bearer = |token: &str| of(header::AUTHORIZATION, &format!("Bearer {token}"));
        assert_eq!(status(Some(secret), None, &bearer(secret)), None);
        assert_eq!(status(Some(secret), Some(secret), &HeaderMap::new()), None);
        for wrong in ["", "0123456789abcde", "0123456789abcdeg", "0123456789abcdef0"] {
            assert_eq!(status(Some(secret), None, &bearer(wrong)), Some(401));
            assert_eq!(
                status(Some(secret), Some(wrong), &of(header::HOST, "localhost")),
                Some(401)
            );
        }
    }

    #[test]
    fn an_open_address_needs_a_token() {
        let open: IpAddr = "0.0.0.0".parse().unwrap();
        let own: IpAddr = "::1".parse().unwrap();
        assert_eq!(token(own, None).unwrap(), None);
        assert_eq!(token(own, Some(String::new())).unwrap(), None);
        assert!(token(open, None).unwrap_err().to_string().contains("openssl rand"));
        assert!(token(open, Some("short".into())).is_err());
        assert!(token(own, Some("short".into())).is_err());
        assert!(token(open, Some("0123456789abcdef".into())).unwrap().is_some());
    }
}
