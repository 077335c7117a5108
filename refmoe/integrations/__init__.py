"""refmoe inside other libraries, which are imported only when asked for."""
