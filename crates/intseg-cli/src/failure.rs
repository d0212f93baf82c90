//! How a command fails: one line on stderr, and an exit status of 1 (failed), 2 (usage) or 130 (interrupted).

use intseg::config::ConfigError;
use intseg::networks::UnknownNetwork;
use intseg::run::RunError;
use intseg::threads::IsaError;
use std::process::ExitCode;

/// The command line asks for something that cannot be.
#[derive(Debug)]
pub struct Usage(pub String);

/// The failure has been reported already, file by file.
#[derive(Debug)]
pub struct Reported;

/// Ctrl-C stopped the command, and what it had was saved.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("see above")
    }
}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Usage {}
impl std::error::Error for Reported {}
impl std::error::Error for Interrupted {}

/// Prints the error and returns the exit status.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        return ExitCode::from(130);
    }
    if error.is::<Reported>() {
        return ExitCode::FAILURE;
    }
    // Whoever reads the output has seen enough, as in `intseg inspect … | head`.
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", line(error));
    match is_usage(error) {
        true => ExitCode::from(2),
        false => ExitCode::FAILURE,
    }
}

/// The chain of causes as one line; a cause that its effect has quoted already is not repeated.
fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if text.contains("No space left") || text.contains("File too large") {
        text += "; free some space or write elsewhere, what was written before is whole";
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_usage(error: &anyhow::Error) -> bool {
    let own = |cause: &(dyn std::error::Error + 'static)| {
        let run = cause.downcast_ref::<RunError>().is_some_and(|run| {
            use RunError::{Config, Exists, Network, NothingToResume, OtherConfig};
            matches!(run, Config(_) | Network(_) | Exists(_) | NothingToResume(_) | OtherConfig(_))
        });
        run || cause.is::<Usage>()
            || cause.is::<ConfigError>()
            || cause.is::<UnknownNetwork>()
            || cause.is::<IsaError>()
    };
    error.chain().any(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_is_one_line_with_its_causes_and_none_twice() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = Err::<(), _>(full).context("cannot write\nout.json").unwrap_err();
        let text = line(&error);
        assert!(text.starts_with("cannot write out.json: No space left"), "{text}");
        assert!(text.contains("free some space"), "{text}");
        assert_eq!(line(&anyhow::anyhow!("a: b").context("x: a: b")), "x: a: b");
        assert!(is_usage(&anyhow::Error::new(Usage("no".into())).context("outer")));
    }
}
