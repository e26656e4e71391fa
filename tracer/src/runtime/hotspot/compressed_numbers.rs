//! The numbers that HotSpot compresses: `UNSIGNED5` of OpenJDK's `unsigned5.hpp`, and the tables of lines that are made of them.

/// Bytes from this on say that another one follows.
const MORE: u8 = 192;
/// The most bytes of a number.
const LONGEST: u32 = 5;

/// Takes numbers from bytes. Bytes are counted from `base`: 0, or 1 since JDK 20.
#[derive(Clone, Debug)]
pub struct Numbers<'a> {
    bytes: &'a [u8],
    base: u8,
}

impl<'a> Numbers<'a> {
    /// The numbers that the bytes begin with.
    #[must_use]
    pub fn new(bytes: &'a [u8], base: u8) -> Self {
        Self { bytes, base }
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(byte)
    }

    /// The next number; `None` at the end, or where there is none.
    pub fn next_number(&mut self) -> Option<u32> {
        let mut number = 0_u32;
        for index in 0..LONGEST {
            let byte = self.byte()?;
            let digit = byte.checked_sub(self.base)?;
            number = number.wrapping_add(u32::from(digit).wrapping_shl(6 * index));
            if byte < MORE {
                break;
            }
        }
        Some(number)
    }

    fn next_signed(&mut self) -> Option<i32> {
        let number = self.next_number()?;
        Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
    }
}

/// The line of a bytecode, by a method's table of lines: of what begins at it, or else last before it.
#[must_use]
pub fn line_of(table: &[u8], bytecode: u32, base: u8) -> Option<u32> {
    /// In place of a pair in one byte: two numbers follow.
    const LONG: u8 = 0xff;
    let mut numbers = Numbers::new(table, base);
    let (mut at, mut line) = (0_i64, 0_i64);
    let mut best: Option<(i64, i64)> = None;
    loop {
        match numbers.byte()? {
            0 => break,
            LONG => {
                at += i64::from(numbers.next_signed()?);
                line += i64::from(numbers.next_signed()?);
            }
            pair => {
                at += i64::from(pair >> 3);
                line += i64::from(pair & 7);
            }
        }
        if at == i64::from(bytecode) {
            best = Some((at, line));
            break;
        }
        if at < i64::from(bytecode) && best.is_none_or(|(before, _)| at >= before) {
            best = Some((at, line));
        }
    }
    u32::try_from(best?.1).ok().filter(|&line| line > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_up_to_five_bytes() {
        let read = |bytes: &[u8], base| {
            let mut numbers = Numbers::new(bytes, base);
            std::iter::from_fn(|| numbers.next_number()).collect::<Vec<_>>()
        };
        assert_eq!(read(&[0, 191, 192, 0, 255, 1], 0), [0, 191, 192, 255 + 64]);
        assert_eq!(read(&[1, 191, 192, 1], 1), [0, 190, 191]);
        assert_eq!(
            read(&[255; 5], 0),
            [255_u32.wrapping_mul(1 + (1 << 6) + (1 << 12) + (1 << 18)).wrapping_add(255 << 24)]
        );
        assert_eq!(read(&[5, 0, 7], 1), [4], "0 is no digit");
        assert_eq!(read(&[200], 0), [0; 0], "cut");
    }

    #[test]
    fn a_line_is_that_of_the_last_bytecode_before() {
        // 0 → 10 (two numbers), 5 → 12, then back: 9 → 11, and 20 → 300.
        let table = [0xff, 0, 20, 5 << 3 | 2, 0xff, 8, 1, 0xff, 22, 192 | 2, 6, 0];
        let line = |bytecode| line_of(&table, bytecode, 0);
        assert_eq!([0, 4, 5, 8, 9, 19].map(line), [10, 10, 12, 12, 11, 11].map(Some));
        assert_eq!(line_of(&table[..1], 3, 0), None, "cut");
        assert_eq!(line_of(&[0], 3, 0), None, "empty");
    }
}
