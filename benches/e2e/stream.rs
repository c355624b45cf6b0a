//! One TCP stream that flows until it is killed. Its receiving end says, whenever it is asked, how much has come so far:
//! so the goodput of any stretch of time is known, also of one in which next to nothing comes, or nothing.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is written and read at once, as iperf3 does.
const BLOCK: usize = 128 << 10;
/// Who listens was there before.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Waits for a stream; prints `listening` when there may be one.
pub fn listen(address: &str, role: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    let (stream, _) = listener.accept()?;
    flow(stream, role)
}

/// Begins a stream; prints `connected` then.
pub fn open(address: SocketAddr, role: &str) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    println!("connected");
    flow(stream, role)
}

fn flow(mut stream: TcpStream, role: &str) -> io::Result<()> {
    if role == "send" {
        let block = vec![0; BLOCK];
        loop {
            stream.write_all(&block)?;
        }
    }
    let (begun, received) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let counter = received.clone();
    thread::spawn(move || {
        let mut block = vec![0; BLOCK];
        // A stream that has broken carries no more; what came before counts.
        while let Ok(len @ 1..) = stream.read(&mut block) {
            counter.fetch_add(len as u64, Ordering::Relaxed);
        }
    });
    for question in io::stdin().lock().lines() {
        question?;
        let (bytes, seconds) = (received.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
        println!("{{\"bytes\": {bytes}, \"seconds\": {seconds:.6}}}");
    }
    Ok(())
}
