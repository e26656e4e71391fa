//! Resident and outstanding memory over the recording, in bounded memory.

/// The sizes, evenly spaced in time.
#[derive(Debug)]
pub struct Series {
    points: Vec<(u64, u64)>,
    /// Indexes of the points at which a new window began.
    marks: Vec<usize>,
    /// Every so many sizes one is kept.
    spacing: usize,
    since: usize,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), marks: Vec::new(), spacing: 1, since: 0 }
    }
}

impl Series {
    const CAPACITY: usize = 2048;

    /// Adds the sizes of now. They come at even times.
    pub fn push(&mut self, rss: u64, outstanding: u64) {
        self.since += 1;
        if self.since < self.spacing {
            return;
        }
        self.since = 0;
        self.points.push((rss, outstanding));
        if self.points.len() == Self::CAPACITY {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.marks.iter_mut().for_each(|mark| *mark /= 2);
            self.marks.dedup();
            self.spacing *= 2;
        }
    }

    /// A new window begins.
    pub fn mark(&mut self) {
        self.marks.push(self.points.len());
        self.marks.dedup();
    }

    /// The sizes in so many columns, newest last; the newest of those that share one. Fewer when there are not as many yet.
    #[must_use]
    pub fn columns(&self, width: usize) -> Vec<(u64, u64)> {
        let count = self.points.len();
        if count <= width {
            return self.points.clone();
        }
        (1..=width).map(|column| self.points[column * count / width - 1]).collect()
    }

    /// The columns in which a window begins.
    #[must_use]
    pub fn marked_columns(&self, width: usize) -> Vec<usize> {
        let count = self.points.len();
        let column = |mark: usize| if count <= width { mark } else { mark * width / count };
        self.marks.iter().map(|&mark| column(mark)).filter(|&column| column < width.min(count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_are_columns_and_many_share_them() {
        let mut series = Series::default();
        (0..4).for_each(|size| series.push(size, 2 * size));
        series.mark();
        series.push(4, 8);
        assert_eq!(series.columns(10), [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]);
        assert_eq!(series.marked_columns(10), [4]);
        assert_eq!(series.columns(2), [(1, 2), (4, 8)]);
        assert_eq!(series.marked_columns(2), [1]);
    }

    #[test]
    fn it_is_bounded_and_keeps_its_shape() {
        let mut series = Series::default();
        for size in 0..100_000 {
            if size == 50_000 {
                series.mark();
            }
            series.push(size, 0);
        }
        assert!(series.points.len() < Series::CAPACITY);
        let columns = series.columns(100);
        assert_eq!(columns.len(), 100);
        assert!(columns.windows(2).all(|two| two[0].0 < two[1].0));
        assert!((45..=55).contains(&series.marked_columns(100)[0]), "{:?}", series.marked_columns(100));
    }
}
