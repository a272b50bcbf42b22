//! The guide: one page for each decision about a cache, with its options, costs and pitfalls.

#[doc = include_str!("cache_status.md")]
pub mod cache_status {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("choosing.md")]
///
/// # All levels, from the browser to the database
///
#[doc = include_str!("levels.svg")]
pub mod choosing {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("content_negotiation.md")]
pub mod content_negotiation {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("csp_nonces.md")]
pub mod csp_nonces {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("csrf.md")]
pub mod csrf {}

#[cfg(any(doc, feature = "admin"))]
#[doc = include_str!("dashboard.md")]
pub mod dashboard {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("existing.md")]
pub mod existing {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("flash_messages.md")]
pub mod flash_messages {}

#[doc = include_str!("headers.md")]
pub mod headers {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("htmx.md")]
pub mod htmx {}

#[doc = include_str!("identity.md")]
pub mod identity {}

#[doc = include_str!("invalidation.md")]
pub mod invalidation {}

#[cfg(any(doc, feature = "axum"))]
#[doc = include_str!("layers.md")]
pub mod layers {}

#[doc = include_str!("lifetimes.md")]
pub mod lifetimes {}

#[doc = include_str!("many_processes.md")]
pub mod many_processes {}

#[cfg(any(doc, all(feature = "metrics", feature = "axum")))]
#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("migration.md")]
pub mod migration {}

#[cfg(any(doc, feature = "sqlite", feature = "postgres"))]
#[doc = include_str!("queries.md")]
pub mod queries {}

#[doc = include_str!("recipes.md")]
pub mod recipes {}

#[cfg(any(doc, feature = "redis"))]
#[doc = include_str!("redis.md")]
pub mod redis {}

#[doc = include_str!("stampede.md")]
pub mod stampede {}

#[doc = include_str!("values.md")]
pub mod values {}

#[cfg(any(doc, all(feature = "warming", feature = "axum")))]
#[doc = include_str!("warming.md")]
pub mod warming {}

#[cfg(any(doc, all(feature = "write-behind", feature = "sqlite")))]
#[doc = include_str!("write_behind.md")]
pub mod write_behind {}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(feature = "metrics")]
    fn the_guide_has_each_metric_with_its_unit_and_its_attributes() {
        let page = include_str!("metrics.md");
        for metric in larder_core::kernel::METRICS {
            let attributes = metric.attributes.iter().map(|name| format!("`{name}`"));
            let attributes = attributes.collect::<Vec<_>>().join(", ");
            let row = format!(
                "| `{}` | {} | `{}` | {attributes} | {} |",
                metric.name,
                metric.instrument.as_str(),
                metric.unit,
                metric.description
            );
            assert!(page.contains(&row), "{row}");
        }
        let rows = page.lines().filter(|line| line.starts_with("| `larder.")).count();
        assert_eq!(rows, larder_core::kernel::METRICS.len(), "no metric is in the guide alone");
    }

    #[test]
    fn the_guide_explains_each_reason() {
        let page = include_str!("cache_status.md");
        for reason in crate::Reason::ALL {
            assert!(page.contains(&format!("`{reason}`")), "{reason}: {}", reason.sentence());
        }
    }
}
