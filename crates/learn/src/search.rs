//! The search: a fixed list of configurations per family, cheapest first (after FLAML's cheap-first order),
//! continued by seeded random draws. Families take turns, so that a small budget still sees them all.
use crate::rng::Rng;
use crate::{Config, Family};

/// The configurations a job tries, in order.
pub(crate) fn plan(families: &[Family], trials: usize, seed: u64) -> Vec<Config> {
    let mut families = families.to_vec();
    families.sort_unstable();
    (0..trials).map(|i| nth(families[i % families.len()], i / families.len(), seed)).collect()
}

/// The `n`th configuration of a family.
fn nth(family: Family, n: usize, seed: u64) -> Config {
    let fixed = match family {
        Family::Logistic => [1e-3, 1e-2, 1e-4, 1e-1].get(n).map(|&l2| Config::Logistic { l2 }),
        Family::Mlp => [(&[32][..], 30), (&[64], 30), (&[64, 32], 40), (&[128, 64], 40)].get(n).map(
            |&(hidden, epochs)| Config::Mlp { hidden: hidden.to_vec(), rate: 3e-3, epochs, decay: 1e-2 },
        ),
        Family::Gbdt => [(40, 3, 0.3), (60, 4, 0.2), (100, 3, 0.15), (120, 5, 0.1)]
            .get(n)
            .map(|&(trees, depth, rate)| Config::Gbdt { trees, depth, rate, l2: 1.0 }),
    };
    fixed.unwrap_or_else(|| draw(family, Rng::new(seed, &format!("{family} {n}"))))
}

fn draw(family: Family, mut rng: Rng) -> Config {
    let mut log = |low: f64, high: f64| low * (high / low).powf(rng.unit());
    match family {
        Family::Logistic => Config::Logistic { l2: log(1e-6, 1.0) },
        Family::Mlp => {
            let first = log(16.0, 192.0).round() as usize;
            let hidden = if log(1.0, 4.0) < 2.0 { vec![first] } else { vec![first, first.div_ceil(2)] };
            Config::Mlp {
                hidden,
                rate: log(1e-3, 1e-2),
                epochs: log(20.0, 80.0).round() as usize,
                decay: log(1e-4, 1e-1),
            }
        }
        Family::Gbdt => Config::Gbdt {
            trees: log(20.0, 200.0).round() as usize,
            depth: log(2.0, 7.0).round() as usize,
            rate: log(0.03, 0.4) as f32,
            l2: log(0.1, 10.0) as f32,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_draws_repeat() {
        let plan_of = |seed| plan(&[Family::Gbdt, Family::Logistic], 14, seed);
        let trials = plan_of(3);
        assert_eq!(trials[0].family(), Family::Logistic);
        assert_eq!(trials[1].family(), Family::Gbdt);
        assert_eq!(trials, plan_of(3));
        assert_eq!(trials[..8], plan_of(4)[..8]);
        assert_ne!(trials[8..], plan_of(4)[8..]);
    }
}
