//! Sizes of convolutions, known at run time, and the one that dfdx lacks.

use dfdx::shapes::{ConstDim, Dim};

/// The dimension `N / G`: input channels of each group.
///
/// Stable Rust cannot compute `Const<{ N / G }>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotient<const N: usize, const G: usize>;

impl<const N: usize, const G: usize> Dim for Quotient<N, G> {
    fn size(&self) -> usize {
        Self::SIZE
    }

    fn from_size(size: usize) -> Option<Self> {
        (size == Self::SIZE).then_some(Self)
    }
}

impl<const N: usize, const G: usize> ConstDim for Quotient<N, G> {
    const SIZE: usize = {
        assert!(G > 0 && N.is_multiple_of(G), "groups must divide the channels");
        N / G
    };
}

/// A square window that moves over images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Window {
    /// Places of the window along a side of `size`, at least one; `None` where
    /// it does not fit.
    pub fn places(self, size: usize) -> Option<usize> {
        let room = size.checked_add(self.padding.checked_mul(2)?)?.checked_sub(self.kernel)?;
        (self.kernel > 0).then_some(())?;
        Some(room.checked_div(self.stride)? + 1)
    }
}

/// A batch of planes, each a window moves over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planes {
    pub window: Window,
    /// Height and width.
    pub input: [usize; 2],
    /// Height and width.
    pub output: [usize; 2],
}

impl Planes {
    /// `None` where the window does not fit.
    pub fn new(window: Window, input: [usize; 2]) -> Option<Self> {
        let output = [window.places(input[0])?, window.places(input[1])?];
        Some(Self { window, input, output })
    }

    pub fn input_area(&self) -> usize {
        self.input[0] * self.input[1]
    }

    pub fn output_area(&self) -> usize {
        self.output[0] * self.output[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_do_not_fit_have_no_place() {
        let window = Window { kernel: 3, stride: 2, padding: 0 };
        assert_eq!([3, 4, 5, 28].map(|size| window.places(size).unwrap()), [1, 1, 2, 13]);
        assert_eq!(window.places(2), None);
        assert_eq!(Window { padding: 1, ..window }.places(1), Some(1));
        assert_eq!(Window { stride: 0, ..window }.places(9), None);
        assert_eq!(Window { kernel: 0, ..window }.places(9), None);
        assert_eq!(Window { padding: usize::MAX, ..window }.places(9), None);
    }
}
