//! The macro with which the `foundationdb` crate chooses code by API version, for version 730 alone.

/// `if_cfg_api_versions!(min = 620 => { .. } else { .. })` is the first block if `min <= 730`, and with a `max` if also
/// `730 <= max`; without `else` it is the code behind `=>` or nothing.
#[macro_export]
macro_rules! if_cfg_api_versions {
    (min = 740 $(, max = $max:literal)? => { $($then:tt)* } else { $($otherwise:tt)* }) => {{ $($otherwise)* }};
    (min = 740 $(, max = $max:literal)? => $($then:tt)*) => {};
    ($(min = $min:literal,)? max = 730 => $($then:tt)*) => {
        $crate::if_cfg_api_versions! { min = 730 => $($then)* }
    };
    ($(min = $min:literal,)? max = 740 => $($then:tt)*) => {
        $crate::if_cfg_api_versions! { min = 730 => $($then)* }
    };
    ($(min = $min:literal,)? max = $max:literal => { $($then:tt)* } else { $($otherwise:tt)* }) => {{
        $($otherwise)*
    }};
    ($(min = $min:literal,)? max = $max:literal => $($then:tt)*) => {};
    (min = $min:literal => { $($then:tt)* } else { $($otherwise:tt)* }) => {{ $($then)* }};
    (min = $min:literal => $($then:tt)*) => { $($then)* };
}

#[cfg(test)]
mod tests {
    const CHOSEN: [bool; 5] = [
        if_cfg_api_versions!(min = 620 => { true } else { false }),
        if_cfg_api_versions!(min = 730 => { true } else { false }),
        if_cfg_api_versions!(min = 510, max = 730 => { true } else { false }),
        if_cfg_api_versions!(min = 740 => { true } else { false }),
        if_cfg_api_versions!(min = 510, max = 600 => { true } else { false }),
    ];

    #[test]
    fn the_version_is_730() {
        assert_eq!(CHOSEN, [true, true, true, false, false]);
    }
}
