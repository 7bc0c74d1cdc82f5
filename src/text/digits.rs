//! Decimal digits of all scripts.

/// The zero of every run of ten decimal digits (category Nd) in Unicode 16; its nine others follow it.
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090,
    0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0,
    0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950,
    0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Value of a decimal digit of any script. What only looks like a number (`²`, `½`, `四`) is none, as for Python's `\d`.
pub fn value(c: char) -> Option<u8> {
    let code = u32::from(c);
    let zero = ZEROS[ZEROS.partition_point(|zero| *zero <= code).checked_sub(1)?];
    u8::try_from(code - zero).ok().filter(|value| *value < 10)
}

/// Digits of all scripts as ASCII digits, and the signs that stand among them as theirs: fullwidth and Arabic points and commas.
pub fn to_ascii(text: &str) -> String {
    let ascii = |c: char| match value(c) {
        Some(value) => char::from(b'0' + value),
        None => match c {
            '．' | '٫' => '.',
            '，' | '٬' => ',',
            other => other,
        },
    };
    text.chars().map(ascii).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_all_scripts_have_their_value() {
        let values: Vec<_> = "09০৯௬๓٣５𝟗".chars().map(|c| value(c).unwrap()).collect();
        assert_eq!(values, [0, 9, 0, 9, 6, 3, 3, 5, 9]);
        assert!("a/:²½四Ⅳ ,".chars().all(|c| value(c).is_none()));
        assert!(ZEROS.windows(2).all(|pair| pair[0] + 10 <= pair[1]));
        assert_eq!(to_ascii("১,৪৫০.৫ ٣٬٤٥٠٫٢ ５．０ x²"), "1,450.5 3,450.2 5.0 x²");
    }
}
