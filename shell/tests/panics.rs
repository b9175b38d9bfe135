//! A panic is logged like everything else, because writing to standard error directly may block.
//! This test has its own file, because a process has one panic hook.

use std::io::Write;
use std::sync::{Arc, Mutex};
use surehook::logs;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_is_logged_with_its_place_and_its_message() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(logs::log_panic));
    let panicked = tracing::subscriber::with_default(subscriber, || {
        std::panic::catch_unwind(|| panic!("for the test"))
    });
    std::panic::set_hook(standard);
    assert!(panicked.is_err());
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(
        text.contains("ERROR") && text.contains("panicked") && text.contains("for the test"),
        "{text}"
    );
    assert!(text.contains(&format!("location={}:", file!())), "{text}");
}
