"""Pages of one arena of memory, private or shared between processes."""
