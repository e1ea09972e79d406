//! `monitor --listen`: the page, JSON and Prometheus' text, and who may read them.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{configs, fails, launch, simulated_driver, wait};

const SECRET: &str = "a-secret-of-some-length";

/// A `monitor --listen` that is killed when this goes.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(command: &mut Command, listen: &str) -> Self {
        let mut child = command.args(["--listen", listen]).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("watch at http://").and_then(|rest| rest.split('/').next());
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, address }
    }

    /// Of this machine, with simulated GPUs.
    fn of_gpus(dir: &Path, gpus: &str, listen: &str) -> Self {
        simulated_driver(dir);
        let file = dir.join("gpus");
        std::fs::write(&file, gpus).unwrap();
        let mut command = monitor();
        command.env("LD_LIBRARY_PATH", dir).env("GPU_SIM_NVML", &file);
        Self::start(&mut command, listen)
    }

    /// Status and body of a request with these headers.
    fn get(&self, path: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

fn monitor() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("reclora-launch"));
    command.arg("monitor").stdout(Stdio::null()).env_remove("RECLORA_MONITOR_TOKEN");
    command
}

const HOST: &str = "Host: localhost\r\n";

/// Eight GPUs: one is throttled and nearly full, one has had an Xid error, one is lost.
fn eight() -> String {
    let mut gpus: Vec<String> = (0..8)
        .map(|gpu| {
            format!("{} 10 {} 81559 {} 400000 1980 0 0 0 60", 10 * gpu, 1000 * gpu, 40 + gpu)
        })
        .collect();
    gpus[5] = "50 10 5000 81559 45 400000 1980 0 0 79 60".into();
    gpus[6] = "99 90 81000 81559 91 700000 1200 64 0".into();
    gpus[7] = "0 0 0 81559 0 0 0 0 15".into();
    gpus.join("\n")
}

#[test]
fn the_metrics_of_simulated_gpus_have_the_names_of_dcgm() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of_gpus(dir.path(), &eight(), "127.0.0.1:0");
    let metrics = wait("the second look and the Xid error", || {
        let (status, text) = server.get("/metrics", HOST);
        assert_eq!(status, 200, "{text}");
        let xid = text
            .lines()
            .any(|line| line.starts_with("DCGM_FI_DEV_XID_ERRORS{") && line.ends_with(" 79"));
        (xid && text.contains("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{")).then_some(text)
    });
    let value = |name: &str, gpu: usize| {
        let gpu = format!("gpu=\"{gpu}\"");
        let mut lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let line = lines.find(|line| line.contains(&gpu))?;
        line.rsplit(' ').next().unwrap().parse::<f64>().ok()
    };
    assert_eq!(value("DCGM_FI_DEV_GPU_UTIL", 5), Some(50.0));
    // In MiB, as NVIDIA's exporter has it.
    assert_eq!(value("DCGM_FI_DEV_FB_USED", 3), Some(3000.0));
    assert_eq!(value("DCGM_FI_DEV_FB_FREE", 3), Some(81559.0 - 3000.0));
    assert_eq!(value("DCGM_FI_DEV_POWER_USAGE", 2), Some(400.0));
    assert_eq!(value("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 2), Some(0.6));
    assert_eq!(value("DCGM_FI_DEV_XID_ERRORS", 5), Some(79.0));
    assert_eq!(value("DCGM_FI_DEV_XID_ERRORS", 4), Some(0.0));
    // What can't be known is left out, never 0.
    assert_eq!(value("DCGM_FI_DEV_GPU_UTIL", 7), None);
    assert_eq!(value("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 0), None);
    assert_eq!(value("DCGM_FI_PROF_SM_ACTIVE", 0), None);
    assert_eq!(value("reclora_gpu_lost", 7), Some(1.0));
    assert_eq!(value("reclora_gpu_throttled", 6), Some(1.0));
    assert!(metrics.contains("# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n"), "{metrics}");
    let gpu = metrics.lines().find(|line| line.starts_with("DCGM_FI_DEV_GPU_UTIL{")).unwrap();
    for label in ["UUID=\"GPU-", "device=\"nvidia0\"", "modelName=\"Simulated GPU\"", "Hostname="] {
        assert!(gpu.contains(label), "{label} is not in {gpu}");
    }
    let verdict = "verdict=\"GPU lost\"";
    assert!(metrics.contains(verdict), "{metrics}");
    let (status, json) = server.get("/api/view", HOST);
    let view: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, view["nodes"][0]["sample"]["gpus"][5]["xid"].as_u64()), (200, Some(79)));
}

#[test]
fn the_page_reaches_for_nothing_and_only_the_right_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::of_gpus(dir.path(), &eight(), "127.0.0.1:0");
    let (status, page) = server.get("/", HOST);
    assert_eq!(status, 200);
    assert!(page.starts_with("<!doctype html>") && !page.contains("http://"), "{page}");
    assert!(!page.contains("https://") && !page.contains("innerHTML"));
    // Another site's page whose name now leads to this machine.
    assert_eq!(server.get("/api/view", "Host: evil.example\r\n").0, 403);
    assert_eq!(server.get("/nothing", HOST).0, 404);
    let taken = fails(&["monitor", "--listen", &server.address], 1);
    assert!(taken.contains("choose another port"), "{taken}");
    drop(server);

    let mut command = monitor();
    let server = Server::start(command.env("RECLORA_MONITOR_TOKEN", SECRET), "0.0.0.0:0");
    for path in ["/", "/api/view", "/metrics"] {
        assert_eq!(server.get(path, HOST).0, 401, "{path}");
        assert_eq!(server.get(&format!("{path}?token=wrong"), HOST).0, 401, "{path}");
        assert_eq!(server.get(&format!("{path}?token={SECRET}"), HOST).0, 200, "{path}");
        let bearer = format!("{HOST}Authorization: Bearer {SECRET}\r\n");
        assert_eq!(server.get(path, &bearer).0, 200, "{path}");
    }
    let mut open = launch(&["monitor", "--listen", "0.0.0.0:0"]);
    let open = open.env_remove("RECLORA_MONITOR_TOKEN").assert().code(2);
    let said = String::from_utf8_lossy(&open.get_output().stderr).into_owned();
    assert!(said.contains("RECLORA_MONITOR_TOKEN"), "{said}");
}

/// Every metric that the dashboard asks for is one that the code can give.
#[test]
fn the_dashboard_asks_for_what_there_is() {
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let ours = |word: &&str| word.starts_with("DCGM_") || word.starts_with("reclora_");
        words.filter(ours).map(str::to_owned).collect()
    };
    let dashboard = std::fs::read_to_string(configs().join("grafana.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = json["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let asked: BTreeSet<String> =
        targets.flat_map(|target| words(target["expr"].as_str().unwrap())).collect();
    assert!(asked.len() > 10, "{asked:?}");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/monitor");
    let read = |name: &str| std::fs::read_to_string(source.join(name)).unwrap();
    let mut known = words(&(read("gpu.rs") + &read("metrics.rs")));
    for prefix in ["reclora_rank_", "reclora_node_"] {
        // These are put together of a prefix and a name of a table.
        let text = read("metrics.rs");
        let names = text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        for name in names {
            known.insert(format!("{prefix}{name}"));
            known.insert(format!("{prefix}{name}_total"));
        }
    }
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
