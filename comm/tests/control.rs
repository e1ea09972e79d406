//! Connections between launchers: messages in order, both ways; strangers, refusals, and ends.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use reclora_comm::control::{
    Control, ControlListener, Incoming, Introduction, MESSAGE_LIMIT, SILENCE, connect,
};
use reclora_comm::{CommError, Secret};

const SOON: Duration = Duration::from_secs(5);

fn introduction(node: usize) -> Introduction {
    Introduction { node, nodes: 2, build_id: "b".into(), job: "j".into() }
}

fn listen(secret: &Secret) -> ControlListener {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    ControlListener::start(any, secret.clone()).unwrap()
}

/// Both ends of a connection, and what comes to each.
fn pair() -> [(Control, Receiver<Incoming>); 2] {
    let secret = Secret::generate().unwrap();
    let listener = listen(&secret);
    let endpoint = listener.address().to_string();
    let (to_agent, at_agent) = channel();
    let agent = std::thread::spawn(move || {
        let on = move |incoming| to_agent.send(incoming).unwrap_or_default();
        connect(&endpoint, &secret, &introduction(1), SOON, on).unwrap()
    });
    let arrival = listener.next(SOON).unwrap();
    assert_eq!(arrival.introduction, introduction(1));
    let (to_first, at_first) = channel();
    let first = arrival.welcome(move |incoming| to_first.send(incoming).unwrap_or_default());
    [(first.unwrap(), at_first), (agent.join().unwrap(), at_agent)]
}

fn message(at: &Receiver<Incoming>) -> Vec<u8> {
    match at.recv_timeout(SOON).unwrap() {
        Incoming::Message(bytes) => bytes,
        Incoming::Lost(error) => panic!("{error}"),
    }
}

fn lost(at: &Receiver<Incoming>) -> String {
    match at.recv_timeout(SILENCE + SOON).unwrap() {
        Incoming::Message(bytes) => panic!("{bytes:?}"),
        Incoming::Lost(error) => error.to_string(),
    }
}

#[test]
fn messages_arrive_in_order_and_the_last_before_the_end() {
    let [(first, at_first), (agent, at_agent)] = pair();
    assert!(agent.peer().starts_with("node 0 (127.0.0.1:"), "{}", agent.peer());
    assert_eq!(first.peer(), "node 1 (127.0.0.1)");
    assert_eq!(agent.local().to_string(), "127.0.0.1");
    for i in 1..100_u32 {
        first.send(i.to_le_bytes().to_vec()).unwrap();
        agent.send(vec![i as u8; 10_000]).unwrap();
    }
    for i in 1..100_u32 {
        assert_eq!(message(&at_agent), i.to_le_bytes());
        assert_eq!(message(&at_first), vec![i as u8; 10_000]);
    }
    assert!(first.send(vec![0; MESSAGE_LIMIT as usize + 1]).is_err());
    first.send(b"goodbye".to_vec()).unwrap();
    drop(first);
    assert_eq!(message(&at_agent), b"goodbye");
    let error = lost(&at_agent);
    assert!(error.contains("node 0 (127.0.0.1:"), "{error}");
    drop(agent);
}

/// S-2: signs of life keep a silent connection; what stands still is noticed.
#[test]
fn an_idle_connection_stays() {
    let [(_first, at_first), (agent, at_agent)] = pair();
    assert!(at_first.recv_timeout(Duration::from_secs(2)).is_err());
    assert!(at_agent.try_recv().is_err());
    drop(agent);
    let started = Instant::now();
    assert!(lost(&at_first).contains("node 1 (127.0.0.1)"));
    assert!(started.elapsed() < Duration::from_secs(1), "a death is no silence");
}

#[test]
fn s3_strangers_and_refused_nodes_do_not_come_in() {
    let secret = Secret::generate().unwrap();
    let listener = listen(&secret);
    let endpoint = listener.address().to_string();
    let other = Secret::generate().unwrap();
    let error = connect(&endpoint, &other, &introduction(1), SOON, |_| ()).unwrap_err();
    assert!(matches!(error, CommError::WrongSecret { .. }), "{error}");
    // Bytes of anybody: nothing comes of them.
    std::io::Write::write_all(
        &mut std::net::TcpStream::connect(listener.address()).unwrap(),
        b"GET / HTTP/1.1\r\n\r\n",
    )
    .unwrap();
    assert!(listener.next(Duration::from_millis(300)).is_none());
    let dialler = std::thread::spawn(move || {
        connect(&endpoint, &secret, &introduction(9), SOON, |_| ()).unwrap_err().to_string()
    });
    listener.next(SOON).unwrap().refuse("the job has 2 nodes");
    let error = dialler.join().unwrap();
    assert!(error.contains("refused node 9: the job has 2 nodes"), "{error}");
}

#[test]
fn s2_nobody_there_is_an_error_at_the_deadline() {
    let secret = Secret::generate().unwrap();
    let endpoint = listen(&secret).address().to_string();
    let started = Instant::now();
    let wait = Duration::from_secs(2);
    let error = connect(&endpoint, &secret, &introduction(1), wait, |_| ()).unwrap_err();
    assert!(error.to_string().contains(&endpoint), "{error}");
    assert!(started.elapsed() < wait + Duration::from_secs(1));
}
