//! The `intseg` command: it parses, calls the library, and prints.

mod commands;
mod failure;
mod interrupt;
mod machine;
mod output;
mod pictures;
mod progress;

use clap::Parser;

/// Trains and runs semantic-segmentation networks with integers only.
#[derive(Parser)]
#[command(name = "intseg", version, after_help = "Start with: intseg demo")]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> std::process::ExitCode {
    // A fault of the program itself is one line too, and asks for a report.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
        let message = panic.payload_as_str().unwrap_or("unknown");
        eprintln!("error: internal fault{place}: {message}; please report it with the command you ran");
    }));
    let cli = Cli::parse();
    match std::panic::catch_unwind(|| cli.command.run()) {
        Ok(Ok(())) => std::process::ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error),
        Err(_) => std::process::ExitCode::FAILURE,
    }
}
