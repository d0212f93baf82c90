//! Progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use intseg::run::Event;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Shows how far a command has come.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    last_line: Option<Instant>,
    started: Instant,
    /// Steps that were done before this process started.
    skipped: u64,
}

impl Progress {
    /// Progress over `total` things.
    pub fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(total));
        Progress { bar, total, last_line: None, started: Instant::now(), skipped: 0 }
    }

    /// Says that `done` things are done.
    pub fn at(&mut self, done: u64, message: &dyn Fn() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message());
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_EVERY) || done == self.total;
        if due {
            self.last_line = Some(Instant::now());
            eprintln!("{done}/{} {}, {} left", self.total, message(), time(self.left(done)));
        }
    }

    /// Prints a line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Shows an event of training.
    pub fn training(&mut self, event: &Event) {
        match event {
            Event::Started { first_step, steps, train_images, val_images, parameters } => {
                self.total = *steps;
                self.skipped = *first_step;
                self.started = Instant::now();
                if let Some(bar) = &self.bar {
                    bar.set_length(*steps);
                    bar.set_position(*first_step);
                    bar.reset_eta();
                }
                let from = if *first_step > 0 { format!(", resumed at step {first_step}") } else { String::new() };
                self.line(&format!(
                    "{parameters} parameters, {train_images} images to train on, {val_images} to evaluate on{from}"
                ));
            }
            Event::Initialized(report) => self.line(&report.to_string()),
            Event::Diagnosed { step, summary } => self.line(&format!("step {step}: {summary}")),
            Event::Step { step, loss, lr, images_per_second, .. } => {
                self.at(*step, &|| format!("loss {loss:.4}, lr {lr:.6}, {images_per_second:.1} images/s"));
            }
            Event::Evaluated { step, report } => {
                let (miou, accuracy) = (report.miou, report.pixel_accuracy);
                self.line(&format!("step {step}: mIoU {miou:.4}, pixel accuracy {accuracy:.4}"));
            }
            Event::Saved { .. } => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn left(&self, done: u64) -> Duration {
        let did = done.saturating_sub(self.skipped).max(1);
        self.started.elapsed().mul_f64(self.total.saturating_sub(done) as f64 / did as f64)
    }
}

fn bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A duration as people say it.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
