//! From a place in code to a place in its source: the tables that V8 keeps beside bytecode and compiled code.

/// A place in the source of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourcePosition {
    /// Offset in the script, in code units.
    pub offset: u32,
    /// The number of the inlined function that it is in.
    pub inlined: Option<u16>,
}

impl SourcePosition {
    /// What V8 has in one word: `is external` 1 bit, offset + 1 in 30 bits, number + 1 in 16 bits.
    pub(super) const fn of_bits(bits: u64) -> Option<Self> {
        let (offset, inlined) = ((bits >> 1) as u32 & 0x3fff_ffff, (bits >> 31) as u16);
        if bits & 1 == 1 || offset == 0 {
            return None;
        }
        Some(Self { offset: offset - 1, inlined: inlined.checked_sub(1) })
    }
}

/// Numbers of seven bits a byte, the lowest first; the highest bit says that more come.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn unsigned(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Zig-zag: the lowest bit is the sign.
    fn signed(&mut self) -> Option<i64> {
        let number = self.unsigned()?;
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }
}

/// Where the code before `offset`, or at it, is in the source. Since V8 14.1 the distances of code `have_flags` in their lower bits.
pub(super) fn position_at(table: &[u8], offset: u64, have_flags: bool) -> Option<SourcePosition> {
    let mut numbers = Numbers(table);
    let (mut code, mut source, mut found) = (-1_i64, 0_i64, None);
    while !numbers.0.is_empty() {
        let distance = if have_flags {
            (numbers.unsigned()? >> 2).cast_signed()
        } else {
            // Negative ones mark expressions.
            let distance = numbers.signed()?;
            if distance >= 0 { distance } else { -(distance + 1) }
        };
        code = code.checked_add(distance)?;
        source = source.checked_add(numbers.signed()?)?;
        if code > offset.cast_signed() {
            break;
        }
        found = Some(source);
    }
    SourcePosition::of_bits(found?.cast_unsigned())
}

/// The offset of the bytecode that a place in baseline code was made from. The table has the length of the prologue and then that of the
/// code of each instruction; `after` is the offset of the instruction after the call.
pub(super) fn bytecode_at(table: &[u8], after: u64, bytecode: &[u8], sizes: &[u8]) -> Option<u64> {
    let mut numbers = Numbers(table);
    let mut end = numbers.unsigned()?;
    let mut offset = 0;
    if after <= end {
        return Some(0);
    }
    loop {
        let length = numbers.unsigned()?;
        end = end.checked_add(length)?;
        if after <= end {
            return Some(offset as u64);
        }
        offset += bytecode_length(bytecode.get(offset..)?, sizes)?;
    }
}

/// How long the first instruction is, its prefix included, which says how wide its operands are.
fn bytecode_length(bytecode: &[u8], sizes: &[u8]) -> Option<usize> {
    let count = sizes.len() / 3;
    let length = |width: usize, code: u8| {
        let length = sizes.get(..count * 3)?.get(width * count + usize::from(code)).copied();
        length.filter(|&length| length > 0 && usize::from(code) < count).map(usize::from)
    };
    // Wide, ExtraWide, and both with a breakpoint.
    match *bytecode.first()? {
        0 | 2 => Some(1 + length(1, *bytecode.get(1)?)?),
        1 | 3 => Some(1 + length(2, *bytecode.get(1)?)?),
        code => length(0, code),
    }
}

/// The line, from 1, of a place in a text, by the places where its lines end.
pub(super) fn line_at(line_ends: &[u32], offset: u32) -> u32 {
    1 + line_ends.partition_point(|&end| end < offset) as u32
}

/// Where the lines of a text end: at `\n`, `\r`, `\r\n`, and two separators of Unicode.
pub(super) fn line_ends(text: &[u16]) -> Vec<u32> {
    const LINE_SEPARATOR: u16 = 0x2028;
    const PARAGRAPH_SEPARATOR: u16 = 0x2029;
    let mut ends = Vec::new();
    for (at, &unit) in text.iter().enumerate() {
        let ends_here = match unit {
            0x0a | LINE_SEPARATOR | PARAGRAPH_SEPARATOR => true,
            0x0d => text.get(at + 1) != Some(&0x0a),
            _ => false,
        };
        if ends_here {
            ends.push(at as u32);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsigned(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }

    fn signed(number: i64) -> Vec<u8> {
        unsigned((number << 1 ^ number >> 63).cast_unsigned())
    }

    fn position(offset: u32, inlined: Option<u16>) -> u64 {
        u64::from(offset + 1) << 1 | u64::from(inlined.map_or(0, |number| number + 1)) << 31
    }

    /// Entries of code offset and position, in one encoding or the other.
    fn table(entries: &[(i64, u64)], have_flags: bool) -> Vec<u8> {
        let (mut code, mut source) = (-1, 0);
        entries.iter().fold(Vec::new(), |mut bytes, &(at, position)| {
            let distance = at - code;
            bytes.extend(match have_flags {
                true => unsigned((distance << 2 | 1).cast_unsigned()),
                false if at % 2 == 0 => signed(distance),
                false => signed(-distance - 1),
            });
            bytes.extend(signed(position.cast_signed() - source));
            (code, source) = (at, position.cast_signed());
            bytes
        })
    }

    #[test]
    fn the_last_entry_that_is_not_behind_the_code_holds() {
        let entries = [(0, position(10, None)), (7, position(500, Some(3))), (300, position(2, None))];
        for have_flags in [false, true] {
            let table = table(&entries, have_flags);
            let at = |offset| position_at(&table, offset, have_flags);
            let plain = |offset| Some(SourcePosition { offset, inlined: None });
            assert_eq!([at(0), at(6)], [plain(10); 2]);
            assert_eq!(at(299), Some(SourcePosition { offset: 500, inlined: Some(3) }));
            assert_eq!(at(u64::MAX >> 1), plain(2));
            assert_eq!(position_at(&table[..table.len() - 1], 400, have_flags), None, "cut off");
        }
        assert_eq!(position_at(&[], 0, false), None);
        assert_eq!(position_at(&[0xff; 64], 0, false), None);
    }

    #[test]
    fn baseline_code_leads_to_the_bytecode_it_was_made_from() {
        // Four kinds of bytecode: two prefixes, one of 1 byte and one of 2, 3, 5 bytes by width.
        let sizes = [1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 5];
        let bytecode = [5, 9, 0, 5, 9, 9, 4, 1, 5, 9, 9, 9, 9, 4];
        let table: Vec<u8> = [20, 10, 200, 6, 8, 4].into_iter().flat_map(unsigned).collect();
        let at = |after| bytecode_at(&table, after, &bytecode, &sizes);
        assert_eq!([20, 21, 30, 31, 230, 231, 237, 245].map(at), [0, 0, 0, 2, 2, 6, 7, 13].map(Some));
        assert_eq!(at(249), None);
        assert_eq!(bytecode_at(&table, 31, &bytecode, &[]), None, "without the sizes");
    }

    #[test]
    fn lines_end_as_they_do_in_javascript() {
        let text: Vec<u16> = "a\nb\r\nc\rd\u{2028}e".encode_utf16().collect();
        let ends = line_ends(&text);
        assert_eq!(ends, [1, 4, 6, 8]);
        assert_eq!([0, 1, 2, 5, 7, 9].map(|offset| line_at(&ends, offset)), [1, 1, 2, 3, 4, 5]);
    }
}
