//! The log queue with an output that blocks, fails, and works again.

use super::*;
use std::sync::mpsc;

const TIMEOUT: Duration = Duration::from_secs(30);

/// An output whose writes wait for the result that the test sends.
struct Scripted {
    asked: mpsc::Sender<Vec<u8>>,
    answers: mpsc::Receiver<io::Result<usize>>,
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.asked.send(bytes.to_vec());
        self.answers.recv().unwrap_or(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    lines: Lines,
    lost: IntCounter,
    told: mpsc::Receiver<u64>,
    asked: mpsc::Receiver<Vec<u8>>,
    answers: mpsc::Sender<io::Result<usize>>,
}

impl World {
    fn start() -> Self {
        let lost = IntCounter::new("lost", "lost").unwrap();
        let ((tell, told), (ask, asked), (answers, answer)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let output = Scripted { asked: ask, answers: answer };
        let lines =
            Lines::start(output, lost.clone(), move |count| tell.send(count).unwrap()).unwrap();
        Self { lines, lost, told, asked, answers }
    }

    /// Receives the next write, and answers it with `answer`.
    fn write(&self, answer: io::Result<usize>) -> Vec<u8> {
        let asked = self.asked.recv_timeout(TIMEOUT).expect("no write arrived");
        self.answers.send(answer).unwrap();
        asked
    }

    fn push(&self, line: &[u8]) {
        self.lines.push(line.to_vec());
    }
}

#[test]
fn a_blocked_output_does_not_block_logging() {
    let world = World::start();
    let line = vec![b'x'; MAX_QUEUED_BYTES / 8];
    for _ in 0..20 {
        world.push(&line);
    }
    assert_eq!(world.lost.get(), 12, "eight lines fit, with the one that is being written");
    world.lines.flush(Duration::from_millis(1));
    for _ in 0..8 {
        assert_eq!(world.write(Ok(line.len())), line);
    }
    assert_eq!(world.told.recv_timeout(TIMEOUT), Ok(12));
    world.push(b"after\n");
    assert_eq!(world.write(Ok(6)), b"after\n");
}

#[test]
fn lost_lines_are_counted_and_reported_when_writing_works_again() {
    let world = World::start();
    for _ in 0..3 {
        world.push(b"lost\n");
        world.write(Err(io::ErrorKind::StorageFull.into()));
    }
    world.push(b"kept\n");
    assert_eq!(world.write(Ok(5)), b"kept\n");
    assert_eq!(world.told.recv_timeout(TIMEOUT), Ok(3));
    world.push(b"kept too\n");
    world.write(Ok(9));
    world.lines.flush(TIMEOUT);
    assert!(world.told.try_recv().is_err(), "each lost line is reported once");
    assert_eq!(world.lost.get(), 3);
}

#[test]
fn a_partial_line_does_not_run_into_the_next() {
    let world = World::start();
    world.push(b"a long line\n");
    assert_eq!(world.write(Ok(6)), b"a long line\n");
    assert_eq!(world.write(Err(io::ErrorKind::StorageFull.into())), b" line\n");
    world.push(b"next\n");
    assert_eq!(world.write(Err(io::ErrorKind::StorageFull.into())), b"\n");
    world.push(b"third\n");
    assert_eq!(world.write(Ok(1)), b"\n");
    assert_eq!(world.write(Ok(6)), b"third\n");
    assert_eq!(world.told.recv_timeout(TIMEOUT), Ok(2));
}

#[test]
fn short_and_interrupted_writes_are_continued() {
    let world = World::start();
    world.push(b"one line\n");
    world.write(Ok(4));
    world.write(Err(io::ErrorKind::Interrupted.into()));
    world.write(Err(io::ErrorKind::WouldBlock.into()));
    assert_eq!(world.write(Ok(5)), b"line\n");
    world.lines.flush(TIMEOUT);
    assert_eq!(world.lost.get(), 0);
}

#[test]
fn flushing_waits_for_every_line() {
    let world = World::start();
    world.push(b"last\n");
    let lines = world.lines.clone();
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || {
        // Longer than the test waits: the end of the queue must end the wait.
        lines.flush(TIMEOUT * 2);
        done.send(()).unwrap();
    });
    assert_eq!(world.asked.recv_timeout(TIMEOUT).unwrap(), b"last\n");
    let soon = Duration::from_millis(100);
    assert!(is_done.recv_timeout(soon).is_err(), "the line is not written yet");
    world.answers.send(Ok(5)).unwrap();
    is_done.recv_timeout(TIMEOUT).expect("the flush did not end after the last line was written");
}
