//! From a place in bytecode to its line, by the table of a code object.

/// How a version keeps lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineTable {
    /// `co_lnotab`, up to 3.9: steps of bytes and lines. Places are bytes.
    Increments,
    /// `co_linetable` of 3.10: lengths in bytes, and steps of lines. Places are instructions.
    Ranges,
    /// `co_linetable` since 3.11 (CPython's `InternalDocs/code_objects.md`): lengths in instructions. Places are bytes.
    Locations,
}

impl LineTable {
    /// The line of a place. Before the first instruction (places below 0) it is the function's own; `None` for what has no line.
    #[must_use]
    pub fn line_at(self, table: &[u8], first: i32, place: i32) -> Option<u32> {
        let line = match (self, u32::try_from(place)) {
            (_, Err(_)) => Some(first),
            (Self::Increments, Ok(place)) => Some(incremented(table, first, place)),
            (Self::Ranges, Ok(place)) => in_ranges(table, first, place.checked_mul(2)?),
            (Self::Locations, Ok(place)) => in_locations(table, first, place / 2),
        };
        u32::try_from(line?).ok().filter(|&line| line > 0)
    }
}

fn incremented(table: &[u8], first: i32, place: u32) -> i32 {
    let (mut address, mut line) = (0_u32, first);
    for &[bytes, lines] in table.as_chunks::<2>().0 {
        address += u32::from(bytes);
        if address > place {
            break;
        }
        line = line.wrapping_add(lines.cast_signed().into());
    }
    line
}

fn in_ranges(table: &[u8], first: i32, place: u32) -> Option<i32> {
    /// In place of a step: no line.
    const NONE: i8 = -128;
    let (mut end, mut line) = (0_u32, first);
    for &[length, step] in table.as_chunks::<2>().0 {
        let step = step.cast_signed();
        if step != NONE {
            line = line.wrapping_add(step.into());
        }
        end += u32::from(length);
        if place < end {
            return (step != NONE).then_some(line);
        }
    }
    None
}

fn in_locations(table: &[u8], first: i32, place: u32) -> Option<i32> {
    const NO_LINE: u8 = 15;
    const LONG: u8 = 14;
    const WITHOUT_COLUMNS: u8 = 13;
    const ONE_LINE: u8 = 10;
    let mut rest = Varints(table);
    let (mut end, mut line) = (0_u32, first);
    loop {
        let head = rest.byte()?;
        let code = head >> 3 & 15;
        match code {
            NO_LINE => {}
            LONG => {
                line = line.wrapping_add(rest.signed()?);
                for _ in 0..3 {
                    rest.unsigned()?;
                }
            }
            WITHOUT_COLUMNS => line = line.wrapping_add(rest.signed()?),
            ONE_LINE.. => {
                line = line.wrapping_add((code - ONE_LINE).into());
                rest.byte()?;
                rest.byte()?;
            }
            _ => {
                rest.byte()?;
            }
        }
        end += u32::from(head & 7) + 1;
        if place < end {
            return (code != NO_LINE).then_some(line);
        }
    }
}

/// Numbers in groups of six bits, lowest first; bit 6 says that more follow.
struct Varints<'a>(&'a [u8]);

impl Varints<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn unsigned(&mut self) -> Option<u32> {
        let mut number = 0_u32;
        for shift in (0..32).step_by(6) {
            let byte = self.byte()?;
            number |= u32::from(byte & 63) << shift;
            if byte & 64 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i32> {
        let number = self.unsigned()?;
        let magnitude = (number >> 1).cast_signed();
        Some(if number & 1 == 1 { -magnitude } else { magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(table: LineTable, bytes: &[u8], places: [i32; 6]) -> [Option<u32>; 6] {
        places.map(|place| table.line_at(bytes, 10, place))
    }

    #[test]
    fn lines_up_to_3_9() {
        let table = [6, 1, 4, 5, 2, 0xfe];
        let found = lines(LineTable::Increments, &table, [-1, 0, 4, 6, 10, 400]);
        assert_eq!(found, [10, 10, 10, 11, 16, 14].map(Some));
    }

    #[test]
    fn lines_of_3_10() {
        // Two instructions of line 11, one without, three of line 9.
        let table = [4, 1, 2, 0x80, 6, 0xfe];
        let found = lines(LineTable::Ranges, &table, [-1, 1, 2, 3, 5, 6]);
        assert_eq!(found, [Some(10), Some(11), None, Some(9), Some(9), None]);
    }

    #[test]
    fn lines_since_3_11() {
        let table = [
            0x80 | 15 << 3 | 1, // two units without a line
            0x80 | 11 << 3,     // one of the next line, with columns
            0,
            0,
            0x80 | 14 << 3 | 2, // three of 100 lines on: 200 has two groups
            0x40 | 8,
            3,
            0,
            1,
            1,
            0x80 | 13 << 3, // one of 101 lines back
            0x40 | 11,
            3,
            0x80 | 5 << 3, // one of the same
            0,
        ];
        let found = lines(LineTable::Locations, &table, [-2, 2, 4, 8, 12, 14]);
        assert_eq!(found, [Some(10), None, Some(11), Some(111), Some(10), Some(10)]);
        assert_eq!(LineTable::Locations.line_at(&table, 10, 16), None, "behind its end");
        assert_eq!(LineTable::Locations.line_at(&table[..6], 10, 8), None, "cut");
    }
}
