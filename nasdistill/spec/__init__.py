"""Pure data, free of torch: component specs, options, architectures, measurements, configuration."""
