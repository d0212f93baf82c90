//! Quick training check.
use intseg::config::Config;
use intseg::run::{Event, RunOptions, train};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let config = Config::load(args[1].as_ref(), &args[4..]).unwrap();
    let options = RunOptions {
        data: args[2].clone().into(),
        out: args[3].clone().into(),
        resume: std::env::var("RESUME").is_ok(),
        threads: 0,
        isa: intseg::threads::isa_from_env().unwrap(),
        stop: Default::default(),
    };
    let summary = train(&config, &options, &mut |event| match event {
        Event::Step { step, loss, images_per_second, .. } if step % 20 == 0 => {
            println!("{step} {loss:.4} {images_per_second:.2}")
        }
        Event::Evaluated { step, report } => {
            println!("eval {step} miou {:.4} acc {:.4} {:?}", report.miou, report.pixel_accuracy, report.iou)
        }
        _ => {}
    })
    .unwrap();
    println!("{summary:?}");
}
