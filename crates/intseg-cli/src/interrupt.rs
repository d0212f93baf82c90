//! Ctrl-C: the first asks the command to save and stop, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that Ctrl-C (or a polite request of the system to end) sets.
///
/// # Errors
/// When the system does not let signals be handled.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping: saving after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(stop)
}
