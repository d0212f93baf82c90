//! Files and text of the host, through semihosting.

use core::arch::asm;
use core::ffi::CStr;

fn call(operation: usize, argument: usize) -> usize {
    let result;
    // SAFETY: semihosting's way to call the debugger; the arguments below are as its operations want them.
    unsafe { asm!("bkpt 0xAB", inout("r0") operation => result, in("r1") argument) };
    result
}

/// Ends the emulator with a status.
pub fn exit(status: u32) -> ! {
    let block = [0x20026, status];
    call(0x20, block.as_ptr() as usize);
    loop {}
}

/// Prints a line.
pub fn text(text: &str) {
    text.bytes().chain([b'\n']).for_each(|byte| {
        call(3, &raw const byte as usize);
    });
}

/// Prints a label and a number.
pub fn print(label: &str, mut number: usize) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    while number > 0 || first == digits.len() {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    label.bytes().for_each(|byte| {
        call(3, &raw const byte as usize);
    });
    text(core::str::from_utf8(&digits[first..]).unwrap_or("?"));
}

/// An open file of the host.
pub struct File(usize);

impl File {
    /// Opens a file; mode 1 reads bytes, 5 writes them.
    pub fn open(name: &CStr, mode: usize) -> Option<Self> {
        let block = [name.as_ptr() as usize, mode, name.to_bytes().len()];
        match call(1, block.as_ptr() as usize) {
            usize::MAX => None,
            handle => Some(File(handle)),
        }
    }

    /// Fills the buffer; `false` where the file ends before.
    pub fn read(&self, buffer: &mut [u8]) -> bool {
        let block = [self.0, buffer.as_mut_ptr() as usize, buffer.len()];
        call(6, block.as_ptr() as usize) == 0
    }

    /// Writes all bytes.
    pub fn write(&self, bytes: &[u8]) -> bool {
        let block = [self.0, bytes.as_ptr() as usize, bytes.len()];
        call(5, block.as_ptr() as usize) == 0
    }
}
