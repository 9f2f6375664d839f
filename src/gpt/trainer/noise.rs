//! Gaussian noise of which every value can be drawn by itself, on a GPU too.

use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// Fills `values` with normal numbers, each two of the generator's next two words.
///
/// Differs from [`SeededNoise`](crate::gpt::SeededNoise), whose values take as many words as
/// chance has it: there is no telling where those of a later value lie.
///
/// # Source
/// Box and Muller 1958, "A note on the generation of random normal deviates".
pub(super) fn fill_normal(rng: &mut ChaCha8Rng, values: &mut [f32]) {
    const UNIT: f32 = 1.0 / (1u64 << 32) as f32;
    for pair in values.chunks_mut(2) {
        // Above 0 and at most 1; 0 to 2 pi.
        let share = (rng.next_u32() as f32 + 1.0) * UNIT;
        let angle = rng.next_u32() as f32 * (std::f32::consts::TAU * UNIT);
        let radius = (-2.0 * libm::logf(share)).sqrt();
        let (sine, cosine) = libm::sincosf(angle);
        pair.iter_mut().zip([cosine, sine]).for_each(|(value, part)| *value = radius * part);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let mut values = vec![0f32; 400_000];
        fill_normal(&mut ChaCha8Rng::seed_from_u64(3), &mut values);
        let moment = |k: i32| values.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / 4e5;
        // Six standard deviations of each.
        let bounds = [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)];
        for (k, expected, variance) in bounds {
            let error = (moment(k) - expected).abs();
            assert!(error < 6.0 * f64::sqrt(variance / 4e5), "moment {k}: {}", moment(k));
        }
        let beyond = values.iter().filter(|v| v.abs() > 3.0).count() as f64;
        assert!((beyond - 1080.0).abs() < 6.0 * 33.0, "{beyond} values beyond 3");
        // Neighbours share their radius, and are independent all the same.
        let both = values.chunks(2).map(|pair| f64::from(pair[0] * pair[1])).sum::<f64>() / 2e5;
        assert!(both.abs() < 6.0 / 2e5f64.sqrt(), "{both}");
    }

    #[test]
    fn a_value_is_that_of_its_words() {
        let rng = ChaCha8Rng::seed_from_u64(7);
        let mut all = [0f32; 9];
        fill_normal(&mut rng.clone(), &mut all);
        let mut later = [0f32; 3];
        let mut at = rng;
        at.set_word_pos(6);
        fill_normal(&mut at, &mut later);
        assert_eq!(all[6..], later);
        // By the same formulas in another language, the generator's included.
        let expected = [1.085_611_4, 1.659_405, 0.909_572, 1.606_104];
        assert!(all.iter().zip(expected).all(|(a, b): (_, f32)| (a - b).abs() < 1e-6), "{all:?}");
    }
}
