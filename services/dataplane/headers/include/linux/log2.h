/* bcc's stack-trace macro names this file; nothing of it is used here. */
