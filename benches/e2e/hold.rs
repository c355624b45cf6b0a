//! Many TCP connections at once: all are opened, then each sends as much as a small page has and waits for its echo; they
//! are closed when all have it, or the time is over.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

/// What each connection carries in either direction: less than a socket's buffer takes at once.
const EACH: usize = 16 << 10;
/// A thread that copies needs no more.
const STACK_LEN: usize = 64 << 10;
/// Connections for whose descriptors there is room beforehand.
const AT_ONCE: usize = 1024;
/// Between two attempts of a connection that was refused for want of room.
const AGAIN: Duration = Duration::from_millis(2);

/// Echoes each connection until its end.
pub fn serve(address: &str) -> io::Result<()> {
    // A table of descriptors that grows while threads share it takes tens of milliseconds. Meanwhile the listener's queue of
    // 128 is full, and a SYN that finds it so is sent again a second later: so the table grows before.
    drop((0..AT_ONCE).map_while(|_| File::open("/dev/null").ok()).collect::<Vec<_>>());
    for stream in TcpListener::bind(address)?.incoming() {
        let stream = stream?;
        Builder::new().stack_size(STACK_LEN).spawn(move || {
            io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)
        })?;
    }
    Ok(())
}

/// Prints how many of `connections` were opened, how many had their echo unaltered, and the seconds of both steps.
pub fn open(address: &str, duration: Duration, connections: usize) -> io::Result<()> {
    let start = Instant::now();
    let mut streams = Vec::with_capacity(connections);
    while streams.len() < connections && start.elapsed() < duration {
        match TcpStream::connect(address) {
            Ok(stream) => streams.push(stream),
            Err(_) => thread::sleep(AGAIN),
        }
    }
    let opened = streams.len();
    let opening = start.elapsed();
    let start = Instant::now();
    let content = |number: usize| (number as u32..).flat_map(u32::to_le_bytes).take(EACH).collect::<Vec<u8>>();
    let sent: Vec<bool> =
        streams.iter_mut().enumerate().map(|(number, stream)| stream.write_all(&content(number)).is_ok()).collect();
    let mut completed = 0;
    for (number, stream) in streams.iter_mut().enumerate() {
        let rest = duration.saturating_sub(start.elapsed()).max(AGAIN);
        let mut back = vec![0; EACH];
        let came = stream.set_read_timeout(Some(rest)).and_then(|()| stream.read_exact(&mut back)).is_ok();
        completed += usize::from(sent[number] && came && back == content(number));
    }
    println!(
        "{{\"opened\": {opened}, \"completed\": {completed}, \"opening\": {:.6}, \"carrying\": {:.6}}}",
        opening.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
