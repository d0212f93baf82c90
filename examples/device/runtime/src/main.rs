//! The intseg runtime on an emulated Cortex-M3: the model in flash, one arena, no heap, no operating system.
//!
//! Reads the images in `input.rgb` of the working directory through semihosting and writes `classes.raw`. The model is
//! the file that `INTSEG_MODEL` names when this is built; `INTSEG_SIZE` is the images' size, such as 48x64.
#![no_std]
#![no_main]

mod semihosting;

use intseg_kernels::Context;
use intseg_runtime::{Memory, Model, Plan, Slot, execute, load};
use semihosting::{File, exit, print};

static MODEL: &[u8] = include_bytes!(env!("INTSEG_MODEL"));
const SIZE: [usize; 2] = size(env!("INTSEG_SIZE").as_bytes());
const PIXELS: usize = SIZE[0] * SIZE[1];

/// Reads `ROWSxCOLUMNS`.
const fn size(text: &[u8]) -> [usize; 2] {
    let (mut size, mut k, mut i) = ([0; 2], 0, 0);
    while i < text.len() {
        match text[i] {
            b'x' => k = 1,
            digit => size[k] = 10 * size[k] + (digit - b'0') as usize,
        }
        i += 1;
    }
    size
}

static mut ARENA: [u8; 2 << 20] = [0; 2 << 20];
static mut IMAGE: [u8; 3 * PIXELS] = [0; 3 * PIXELS];
static mut CLASSES: [u8; PIXELS] = [0; PIXELS];

/// Runs every image; the reason why not.
fn run() -> Result<usize, &'static str> {
    // SAFETY: this is the only code that runs, and takes each once.
    let (arena, image, classes) = unsafe { (&mut *(&raw mut ARENA), &mut *(&raw mut IMAGE), &mut *(&raw mut CLASSES)) };
    let model = Model::parse(MODEL).map_err(|_| "the model is damaged")?;
    let mut slots = [Slot::default(); 64];
    let ctx = Context::reference();
    let plan = Plan::new(&model, SIZE, ctx, &mut slots).map_err(|_| "the model cannot run at this size")?;
    print("arena ", plan.sizes.arena_bytes());
    print("maps ", plan.sizes.activation_bytes());
    print("maps at least ", plan.sizes.lower_bound);
    let mut memory = Memory::in_arena(&plan.sizes, arena).ok_or("the arena is too small")?;
    load(&model, &plan, ctx, &mut memory);
    let input = File::open(c"input.rgb", 1).ok_or("input.rgb cannot be opened")?;
    let output = File::open(c"classes.raw", 5).ok_or("classes.raw cannot be written")?;
    let mut images = 0;
    while input.read(image) {
        execute(&model, &plan, ctx, &mut memory, image, classes, |_, _, _| {});
        if !output.write(classes) {
            return Err("classes.raw cannot be written");
        }
        images += 1;
    }
    Ok(images)
}

#[unsafe(no_mangle)]
extern "C" fn Reset() -> ! {
    match run() {
        Ok(images) => {
            print("images ", images);
            exit(0)
        }
        Err(problem) => {
            semihosting::text(problem);
            exit(1)
        }
    }
}

extern "C" fn fault() -> ! {
    exit(99)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(98)
}

/// An entry of the vector table: the initial stack or a handler.
#[repr(C)]
union Vector {
    stack: usize,
    handler: extern "C" fn() -> !,
}
// SAFETY: it is never written.
unsafe impl Sync for Vector {}

#[unsafe(link_section = ".vectors")]
#[used]
static VECTORS: [Vector; 7] = [
    Vector { stack: 0x2040_0000 },
    Vector { handler: Reset },
    Vector { handler: fault },
    Vector { handler: fault },
    Vector { handler: fault },
    Vector { handler: fault },
    Vector { handler: fault },
];
