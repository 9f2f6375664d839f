//! Seeds of runs, in spaces that cannot meet.
//!
//! What a learned optimizer is judged on must be new to it. A seed is therefore
//! put together from the space it is for, the user's own seed and the number of
//! the run, each in bits of its own: no evaluation seed equals a recording seed,
//! whatever the user's seeds are, and no two runs share one.
//!
//! | bits | holds |
//! |---|---|
//! | 63 | the space: 0 recording, 1 evaluation |
//! | 32 to 62 | the user's seed, below 2^31 |
//! | 0 to 31 | the number of the run |
//!
//! A run's initialisation is drawn by dfdx's generator with this seed, the order
//! of its examples by ChaCha8 with this seed.

/// A number that does not fit its bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found}, expected less than {limit}")]
pub struct SeedError {
    /// Which number.
    pub what: &'static str,
    /// Its value.
    pub found: u64,
    /// First value that is too large.
    pub limit: u64,
}

/// Seeds of one purpose, of one user's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    base: u64,
}

impl Seeds {
    /// First user's seed that is too large.
    pub const LIMIT: u64 = 1 << 31;

    /// Seeds of runs to be recorded and learned from.
    ///
    /// # Errors
    /// If `seed` is [`Self::LIMIT`] or more.
    pub fn recording(seed: u64) -> Result<Self, SeedError> {
        Self::new(0, seed)
    }

    /// Seeds of networks to be judged on.
    ///
    /// # Errors
    /// If `seed` is [`Self::LIMIT`] or more.
    pub fn evaluation(seed: u64) -> Result<Self, SeedError> {
        Self::new(1, seed)
    }

    /// Seeds of networks that prompts are calibrated on: those of recordings with the last
    /// user's seed.
    pub fn calibration() -> Self {
        Self { base: (Self::LIMIT - 1) << 32 }
    }

    /// Seed of one run.
    ///
    /// # Errors
    /// If `run` is 2^32 or more.
    pub fn run(self, run: u64) -> Result<u64, SeedError> {
        let limit = 1 << 32;
        if run < limit {
            Ok(self.base | run)
        } else {
            Err(SeedError { what: "number of the run", found: run, limit })
        }
    }

    fn new(space: u64, seed: u64) -> Result<Self, SeedError> {
        if seed < Self::LIMIT {
            Ok(Self { base: space << 63 | seed << 32 })
        } else {
            Err(SeedError { what: "seed", found: seed, limit: Self::LIMIT })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_users_and_runs_never_share_a_seed() {
        let mut seen = std::collections::HashSet::new();
        for user in [0, 1, Seeds::LIMIT - 1] {
            for seeds in [Seeds::recording(user).unwrap(), Seeds::evaluation(user).unwrap()] {
                for run in [0, 1, u64::from(u32::MAX)] {
                    assert!(seen.insert(seeds.run(run).unwrap()));
                }
            }
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert!(Seeds::recording(Seeds::LIMIT).is_err());
        let error = Seeds::evaluation(0).unwrap().run(1 << 32).unwrap_err();
        assert_eq!(
            error.to_string(),
            "number of the run is 4294967296, expected less than 4294967296"
        );
    }
}
