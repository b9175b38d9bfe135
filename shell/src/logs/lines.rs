//! The queue between the log and its output.
//!
//! Only one thread writes to the output, and only that thread waits for it or sees its errors. So a
//! full disk, a pipe whose reader has ended, or a pipe that is not read cannot stop the service.
//! The queue is bounded by bytes. A line that does not fit, or that cannot be written, is dropped
//! and counted.

use prometheus::IntCounter;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Maximum bytes that wait to be written: some thousand lines.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// Pause before a write to a non-blocking output is retried.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The queue. Clones share it.
#[derive(Clone)]
pub(super) struct Lines {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Notified when a line is added, and when the queue has become empty.
    changed: Condvar,
    lost: IntCounter,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// The bytes of these lines and of the line that is being written.
    bytes: usize,
}

impl Lines {
    /// Starts the thread that writes to `output`.
    ///
    /// That thread calls `tell` with the number of lines that were dropped since the last call,
    /// once the output works again and the queue is empty. `tell` may add a line to the queue.
    ///
    /// # Errors
    ///
    /// The error of the system if the thread cannot be started.
    pub(super) fn start(
        output: impl Write + Send + 'static,
        lost: IntCounter,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let lines = Self {
            shared: Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), lost }),
        };
        let shared = Arc::clone(&lines.shared);
        // Read before the thread runs: lines that are lost before that are reported too.
        let told = shared.lost.get();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            write_lines(&shared, Output { output, is_mid_line: false }, told, &tell);
        })?;
        Ok(lines)
    }

    /// Adds a line, or drops it if it does not fit. Never waits for the output.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut queue = self.shared.queue();
        if queue.bytes.saturating_add(line.len()) > MAX_QUEUED_BYTES {
            self.shared.lost.inc();
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        self.shared.changed.notify_all();
    }

    /// Waits until every line is written or dropped, but not longer than `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let queue = self.shared.queue();
        drop(self.shared.changed.wait_timeout_while(queue, timeout, |queue| queue.bytes > 0));
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next line.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.queue();
        loop {
            match queue.lines.pop_front() {
                Some(line) => return line,
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Removes the bytes of a finished line. Returns whether the queue is empty.
    fn done(&self, bytes: usize) -> bool {
        let mut queue = self.queue();
        queue.bytes -= bytes;
        let is_empty = queue.bytes == 0;
        if is_empty {
            self.changed.notify_all();
        }
        is_empty
    }
}

/// Writes one line after another, as long as the process runs.
fn write_lines(
    shared: &Shared,
    mut output: Output<impl Write>,
    mut told: u64,
    tell: &impl Fn(u64),
) {
    loop {
        let line = shared.next();
        let written = output.write_line(&line);
        if written.is_err() {
            shared.lost.inc();
        }
        let is_empty = shared.done(line.len());
        // Only after a successful write: otherwise the message about lost lines would be lost
        // itself, and cause the next message.
        let lost = shared.lost.get();
        if is_empty && written.is_ok() && lost > told {
            tell(lost - told);
            told = lost;
        }
    }
}

struct Output<W> {
    output: W,
    /// A part of a line was written before an error.
    is_mid_line: bool,
}

impl<W: Write> Output<W> {
    /// Uses one write for each line where the output allows it, so that lines of processes that
    /// share a pipe are not mixed.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_mid_line {
            self.write(b"\n")?;
            self.is_mid_line = false;
        }
        self.write(line)
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.output.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.is_mid_line = !bytes.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The process at the other end of a pipe or terminal can make it non-blocking for
                // every process that uses it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_a_little(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the log thread is not part of a simulation, and polling a pipe needs unsafe code"
)]
fn wait_a_little() {
    std::thread::sleep(AGAIN_AFTER);
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line { lines: self.clone(), bytes: Vec::new() }
    }
}

/// One line. It is added to the queue when it is dropped.
pub(super) struct Line {
    lines: Lines,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.lines.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests;
