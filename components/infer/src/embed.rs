//! From token vectors to the vector of a text.

use crate::config::Pooling;
use crate::types::Failure;

/// The smallest divisor, as in `normalize` of PyTorch.
const NORM_MIN: f64 = 1e-12;

/// Pools `vectors`, of shape `[sequence, hidden]` in row-major order, of which the first `tokens` rows are not padding.
/// The result has `hidden` elements.
///
/// # Errors
///
/// [`Failure::Engine`] for another shape, [`Failure::Unavailable`] for an unsupported pooling.
pub fn pool(vectors: &[f32], hidden: usize, tokens: usize, pooling: Pooling) -> Result<Vec<f32>, Failure> {
    let rows = || vectors.chunks_exact(hidden).take(tokens);
    if hidden == 0 || tokens == 0 || vectors.len() < hidden * tokens {
        return Err(Failure::Engine(format!("{} numbers are not {tokens} vectors of {hidden}", vectors.len())));
    }
    match pooling {
        Pooling::Cls => Ok(vectors[..hidden].to_vec()),
        Pooling::Mean => {
            let mut sum = vec![0.0f32; hidden];
            for row in rows() {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            Ok(sum.into_iter().map(|sum| sum / tokens as f32).collect())
        }
        Pooling::Max => {
            let mut max = vec![f32::NEG_INFINITY; hidden];
            for row in rows() {
                max.iter_mut().zip(row).for_each(|(max, x)| *max = max.max(*x));
            }
            Ok(max)
        }
        Pooling::Unsupported => Err(Failure::Unavailable(
            "1_Pooling/config.json names a pooling mode that is not supported; mean, cls and max are".to_owned(),
        )),
    }
}

/// Scales a vector to length 1; a zero vector is unchanged.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(NORM_MIN);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: [f32; 6] = [1.0, 4.0, 3.0, -2.0, 100.0, 100.0];

    #[test]
    fn padding_is_not_pooled() {
        assert_eq!(pool(&VECTORS, 2, 2, Pooling::Mean).unwrap(), [2.0, 1.0]);
        assert_eq!(pool(&VECTORS, 2, 2, Pooling::Cls).unwrap(), [1.0, 4.0]);
        assert_eq!(pool(&VECTORS, 2, 2, Pooling::Max).unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn wrong_shape_is_an_error() {
        assert!(pool(&VECTORS, 4, 2, Pooling::Mean).is_err());
        assert!(pool(&VECTORS, 0, 2, Pooling::Mean).is_err());
    }

    #[test]
    fn normalized_vectors_have_length_one() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0, 0.0];
        normalize(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
    }
}
